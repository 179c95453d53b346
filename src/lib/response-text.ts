/**
 * The text of a response as it comes, until `signal` ends it. The signal of `fetch` itself may be collected as garbage once
 * the head has come, and then ends nothing any more.
 */
export function responseText({ body }: Response, signal: AbortSignal): AsyncIterable<string> | Iterable<string> {
  return body?.pipeThrough(new TextDecoderStream(), { signal }) ?? [];
}
