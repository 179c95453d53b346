import { SingleBar } from 'cli-progress';

export interface Progress {
  show(progress: { done: number; total: number }): void;
  /** Removes the bar until the next `show`, so that a line can be printed. */
  clear(): void;
  end(): void;
}

/** Shows the progress of a long command on standard error: a bar at a terminal, otherwise a line per tenth. */
export function showProgress(label: string): Progress {
  return process.stderr.isTTY ? barOf(label) : textOf(label);
}

function barOf(label: string): Progress {
  // Line wrapping stays on, because an interrupted command would leave it off in the terminal.
  const format = `${label} [{bar}] {percentage} %, {value} of {total}, {eta_formatted} left`;
  const bar = new SingleBar({ format, barsize: 25, linewrap: true, hideCursor: false, stream: process.stderr });
  return {
    show({ done, total }) {
      if (bar.isActive) bar.update(done);
      else bar.start(total, done);
    },
    clear: () => void (bar.isActive && process.stderr.write('\r\u001b[K')),
    end: () => bar.stop(),
  };
}

function textOf(label: string): Progress {
  let shownTenths = -1;
  return {
    show({ done, total }) {
      const tenths = Math.floor((10 * done) / total);
      if (tenths <= shownTenths) return;
      shownTenths = tenths;
      process.stderr.write(`${label} ${done} of ${total}\n`);
    },
    clear: () => undefined,
    end: () => undefined,
  };
}
