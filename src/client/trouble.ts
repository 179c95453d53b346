/** The same trouble is reported again after this. */
const silenceMs = 60_000;
/** Different troubles that are remembered at most. */
const remembered = 50;

/** Reports what keeps Latchkey from being asked: each message at once, and then once a minute while it lasts. */
export function createTroubleReport(onTrouble: (error: Error) => void): (error: Error) => void {
  const reported = new Map<string, number>();
  return (error) => {
    const nowMs = performance.now();
    if (nowMs - (reported.get(error.message) ?? Number.NEGATIVE_INFINITY) < silenceMs) return;
    if (reported.size >= remembered) reported.clear();
    reported.set(error.message, nowMs);
    onTrouble(error);
  };
}

/** What a reply other than 200 says: status, title and detail of the problem, or that it is none of Latchkey's. */
export function describeAnswer(status: number, text: string): string {
  const { title, detail } = problemIn(text);
  if (title === undefined) return `what answers there is not Latchkey: it answered ${status}. Is url right?`;
  const remedy = status === 401 || status === 403 ? " token must be a verifier's with the scope read." : '';
  return `Latchkey answered ${status} ${title}: ${detail}${remedy}`;
}

function problemIn(text: string): { title?: string; detail?: string } {
  try {
    const { title, detail } = JSON.parse(text) as Record<string, unknown>;
    return typeof title === 'string' && typeof detail === 'string' ? { title, detail } : {};
  } catch {
    return {};
  }
}
