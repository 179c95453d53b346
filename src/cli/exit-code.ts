import { ConfigError, configExitCode } from '../config/config.ts';
import { DatabaseUnfit } from '../database/fitness.ts';
import { GuaranteeBroken } from '../database/guarantees.ts';
import { InstallationMismatch } from '../database/installation.ts';
import { CheckpointFileError } from '../history/checkpoints/checkpointing.ts';

/** 78 where the configuration must change before another start can help, 1 for everything else. */
export function exitCodeOf(error: unknown): number {
  const needsNewConfig = [ConfigError, InstallationMismatch, GuaranteeBroken, CheckpointFileError, DatabaseUnfit].some(
    (kind) => error instanceof kind,
  );
  return needsNewConfig ? configExitCode : 1;
}
