const longestText = 262_144;

/**
 * Fetches a JSON object of bounded length. Redirects are not followed.
 * @throws Error if the server does not answer with such an object
 */
export async function fetchJson(url: string, signal: AbortSignal): Promise<Record<string, unknown>> {
  const response = await fetch(url, { signal, redirect: 'error', headers: { accept: 'application/json' } });
  if (!response.ok) {
    await response.body?.cancel();
    throw new Error(`${url} answered ${response.status}`);
  }
  let text = '';
  for await (const part of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    text += part;
    if (text.length > longestText) throw new Error(`${url} has more than ${longestText} characters`);
  }
  const value: unknown = JSON.parse(text);
  if (typeof value !== 'object' || value === null) throw new Error(`${url} is not a JSON object`);
  return value as Record<string, unknown>;
}
