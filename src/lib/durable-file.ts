import { access, type FileHandle, open, rename, rm } from 'node:fs/promises';
import path from 'node:path';

export async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}

/**
 * Writes a file durably, readable only by its owner.
 * @param unfinished its name until it is complete
 */
export async function writeDurably(
  file: string,
  unfinished: string,
  write: (handle: FileHandle) => Promise<void>,
): Promise<void> {
  try {
    await withFile(unfinished, 'w', async (handle) => {
      await write(handle);
      await handle.sync();
    });
    await rename(unfinished, file);
    await withFile(path.dirname(file), 'r', (handle) => handle.sync());
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  }
}

async function withFile(name: string, flags: string, act: (handle: FileHandle) => Promise<void>): Promise<void> {
  const handle = await open(name, flags, 0o600);
  try {
    await act(handle);
  } finally {
    await handle.close();
  }
}
