/** One sample of the metrics. */
export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

export interface ReadMetrics {
  /** By name, without the suffixes of a histogram. */
  kinds: Map<string, { type: string; help: string }>;
  samples: Sample[];
  /** The value of the sample with these labels; undefined if there is none. */
  value(name: string, labels?: Record<string, string>): number | undefined;
}

/** Parses the text format of Prometheus. */
export function readMetrics(text: string): ReadMetrics {
  const kinds: ReadMetrics['kinds'] = new Map();
  const samples: Sample[] = [];
  for (const line of text.split('\n').filter((line) => line !== '')) {
    const [, word, about = '', rest = ''] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? [];
    if (word === 'HELP') kinds.set(about, { type: '', help: rest });
    else if (word === 'TYPE') kinds.set(about, { help: '', ...kinds.get(about), type: rest });
    else samples.push(readSample(line));
  }
  const value: ReadMetrics['value'] = (name, labels = {}) =>
    samples.find(
      (sample) => sample.name === name && Object.entries(labels).every(([label, of]) => sample.labels[label] === of),
    )?.value;
  return { kinds, samples, value };
}

function readSample(line: string): Sample {
  const [, name = '', labels = '', value = ''] = /^([a-zA-Z_:]\w*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
  if (name === '') throw new Error(`not a sample: ${line}`);
  const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, label = '', of = '']) => [label, of]);
  return { name, labels: Object.fromEntries(pairs), value: Number(value.replace('Inf', 'Infinity')) };
}
