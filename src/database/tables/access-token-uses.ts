import type { AccessTokenId } from '../../domain/ids.ts';

/** When an access token was last accepted. */
export interface AccessTokenUsesTable {
  access_token_id: AccessTokenId;
  last_used_at: Date;
}
