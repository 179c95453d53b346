import type { Actor, CreatorChain } from '../../domain/actor.ts';
import type { AccessTokenId, OrganizationId } from '../../domain/ids.ts';
import type { Role, TokenScope } from '../../domain/permissions.ts';
import type { Json } from './json.ts';

export interface AccessTokensTable {
  id: AccessTokenId;
  organization_id: OrganizationId | null;
  role: Role;
  scopes: TokenScope[];
  name: string;
  email: string | null;
  tag: Buffer;
  tag_keyring_id: string;
  argon2id_hash: string;
  mac: Buffer;
  mac_keyring_id: string;
  last_four: string;
  created_at: Date;
  created_by: Json<Actor>;
  creator_chain: Json<CreatorChain>;
  expires_at: Date | null;
  deleted_at: Date | null;
}
