/** Whether an output has no reader any more: the pipe (EPIPE) or the terminal (EIO) is closed. */
export function isReaderGone({ code }: NodeJS.ErrnoException): boolean {
  return code === 'EPIPE' || code === 'EIO';
}
