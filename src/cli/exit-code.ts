import { ConfigError, configExitCode } from '../config/config.ts';
import { DatabaseUnfit } from '../database/fitness.ts';
import { GuaranteeBroken } from '../database/guarantees.ts';
import { InstallationMismatch } from '../database/installation.ts';
import { CheckpointFileError } from '../history/checkpoints/checkpointing.ts';

/** 78 if the service cannot start until its configuration changes; 1 for everything else. */
export function exitCodeOf(error: unknown): number {
  const needsNewConfig = [ConfigError, InstallationMismatch, GuaranteeBroken, CheckpointFileError, DatabaseUnfit].some(
    (kind) => error instanceof kind,
  );
  return needsNewConfig ? configExitCode : 1;
}
