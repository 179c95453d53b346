import { SingleBar } from 'cli-progress';

export interface Progress {
  show(progress: { done: number; total: number }): void;
  end(): void;
}

/** How far a long command is: a bar for a person at a terminal, a line for every tenth where the output is kept. */
export function showProgress(what: string): Progress {
  return process.stderr.isTTY ? barOf(what) : linesOf(what);
}

function barOf(what: string): Progress {
  // Line wrapping stays on: it would stay off where the command is interrupted.
  const format = `${what} [{bar}] {percentage} %, {value} of {total}, {eta_formatted} left`;
  const bar = new SingleBar({ format, barsize: 25, linewrap: true, hideCursor: false, stream: process.stderr });
  return {
    show({ done, total }) {
      if (bar.isActive) bar.update(done);
      else bar.start(total, done);
    },
    end: () => bar.stop(),
  };
}

function linesOf(what: string): Progress {
  let toldTenths = -1;
  return {
    show({ done, total }) {
      const tenths = Math.floor((10 * done) / total);
      if (tenths <= toldTenths) return;
      toldTenths = tenths;
      process.stderr.write(`${what} ${done} of ${total}\n`);
    },
    end: () => undefined,
  };
}
