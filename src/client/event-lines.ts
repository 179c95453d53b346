/** One of the Server-Sent Events. */
export interface ServerEvent {
  event: string;
  data: string;
}

/** Past this without an end it is no event of Latchkey's. */
const longestEvent = 262_144;

/**
 * Takes text as it comes and gives the events that are whole, as the HTML standard (section 9.2) reads them: lines end with
 * CR, LF or both, a line that begins with a colon is a comment, an empty line ends an event.
 * @throws Error where an event does not end
 */
export function createEventReader(): (text: string) => ServerEvent[] {
  let rest = '';
  let event = '';
  let data: string[] = [];
  return (text) => {
    const events: ServerEvent[] = [];
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? '';
    if (rest.length > longestEvent || data.length > 1_000) throw new Error('an event does not end');
    for (const line of lines) {
      const [, field = '', value = ''] = /^([^:]*)(?:: ?(.*))?$/.exec(line) ?? [];
      if (line === '') {
        if (data.length > 0) events.push({ event: event === '' ? 'message' : event, data: data.join('\n') });
        event = '';
        data = [];
      } else if (field === 'event') event = value;
      else if (field === 'data') data.push(value);
    }
    return events;
  };
}
