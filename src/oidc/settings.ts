import { z } from 'zod';
import { idSuffixPattern, type OrganizationId } from '../domain/ids.ts';
import type { TokenScope } from '../domain/permissions.ts';
import { boolean, integer, isTrustworthyUrl } from '../lib/config-forms.ts';

/** The identity provider of admins, and the meaning of its tokens. */
export interface OidcSettings {
  /** Exactly as in the claim `iss`. */
  issuer: string;
  audience: string;
  /** The claim with the audience. */
  audienceClaim: string;
  organization: FixedOrganization | ClaimedOrganization;
  rolesClaim: string;
  /** Values of that claim that give each scope. */
  rolesOf: Readonly<Record<TokenScope, readonly string[]>>;
  nameClaim: string;
  emailClaim: string;
  /** Whether access tokens without the type `at+jwt` are accepted. */
  acceptsUntypedTokens: boolean;
  requiresNbf: boolean;
  /** The longest remaining lifetime of a token. */
  maxLifetimeSeconds: number;
}

/** All persons of the issuer belong to one organization. */
interface FixedOrganization {
  id: OrganizationId;
}

interface ClaimedOrganization {
  claim: string;
  /** The organizations by the claim's values. Undefined: the values are ids. */
  ids: ReadonlyMap<string, OrganizationId> | undefined;
}

const organizationId = new RegExp(`^org_${idSuffixPattern}$`);

const claim = z
  .string()
  .max(200)
  .regex(/^[^\s,]+$/, 'must be the name of a claim');

/** Separated by commas, or a JSON list if a value contains a comma. */
const values = z
  .string()
  .transform((text) => (text.startsWith('[') ? parsedJson(text) : text.split(',').map((part) => part.trim())))
  .refine(isTextList, 'must be values separated by commas, or a JSON list of texts');

function isTextList(value: unknown): value is string[] {
  return Array.isArray(value) && value.length > 0 && value.every((part) => typeof part === 'string' && part !== '');
}

function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const organizations = z
  .string()
  .transform((text) => (text.startsWith('{') ? pairsOfJson(text) : pairsOf(text)))
  .refine(
    (pairs) => pairs.every(([value, id, ...more]) => value && id && organizationId.test(id) && more.length === 0),
    'must be pairs of a value and the id of an organization, or a JSON object of them',
  )
  .refine((pairs) => new Set(pairs.map(([value]) => value)).size === pairs.length, 'must not name a value twice')
  .transform((pairs) => new Map(pairs.map(([value = '', id = '']) => [value, id as OrganizationId])));

function pairsOf(text: string): string[][] {
  return text.split(',').map((pair) => pair.split('=').map((part) => part.trim()));
}

/** For values that contain a comma or an equals sign. Anything but an object of texts gives no valid pair. */
function pairsOfJson(text: string): string[][] {
  const pairs = Object.entries(parsedJson(text) ?? {}).map(([value, id]) => [value, String(id)]);
  return pairs.length === 0 ? [[]] : pairs;
}

const exampleOrganization = 'org_01k9s3v5wqe8n8x4r2m6t7yb0c';

/** The settings of the identity provider. */
export const oidcEnvironment = {
  OIDC_ISSUER: z
    .string()
    .refine(isIssuer, 'must be the https:// URL of an identity provider, without query and fragment')
    .optional()
    .meta({
      description:
        "The issuer URL of the company's identity provider, exactly as in the claim `iss`. Admins may then use its access tokens (docs/oidc.md). Not set: no identity provider.",
      example: 'https://login.example.com/realms/company',
    }),
  OIDC_AUDIENCE: z.string().max(500).optional().meta({
    description: 'The audience of tokens for Latchkey, in the claim `aud`. Required with OIDC_ISSUER.',
    example: 'https://latchkey.example.com',
  }),
  OIDC_AUDIENCE_CLAIM: claim.default('aud').meta({
    description: 'The claim with the audience. For Amazon Cognito, whose tokens have no `aud`: `client_id`.',
    example: 'client_id',
  }),
  OIDC_ORGANIZATION: z
    .string()
    .regex(organizationId, 'must be the id of an organization')
    .transform((text) => text as OrganizationId)
    .optional()
    .meta({ description: 'The organization of all persons of the identity provider.', example: exampleOrganization }),
  OIDC_ORGANIZATION_CLAIM: claim.optional().meta({
    description: 'The claim with the organization of a person, instead of OIDC_ORGANIZATION.',
    example: 'organization',
  }),
  OIDC_ORGANIZATIONS: organizations.optional().meta({
    description:
      'The organizations by the values of that claim: `value=org_…`, separated by commas, or a JSON object. Not set: the values are ids of organizations.',
    example: `acme=${exampleOrganization}`,
  }),
  OIDC_ROLES_CLAIM: claim.default('roles').meta({
    description: 'The claim with the roles of a person: a list, or a text separated by spaces.',
    example: 'realm_access.roles',
  }),
  OIDC_READ_ROLES: values.default(['latchkey-read']).meta({
    description: 'The roles that give the scope `read`; separated by commas, or a JSON list.',
    example: 'latchkey-auditor,latchkey-admin',
  }),
  OIDC_WRITE_ROLES: values.default(['latchkey-write']).meta({
    description: 'The roles that give the scope `write`; separated by commas, or a JSON list.',
    example: 'latchkey-admin',
  }),
  OIDC_REVEAL_ROLES: values.default(['latchkey-reveal']).meta({
    description: 'The roles that give the scope `reveal`; separated by commas, or a JSON list.',
    example: 'latchkey-key-viewer',
  }),
  OIDC_NAME_CLAIM: claim.default('name').meta({
    description: "The claim with a person's name, for history.",
    example: 'preferred_username',
  }),
  OIDC_EMAIL_CLAIM: claim.default('email').meta({
    description: "The claim with a person's e-mail address, for history.",
    example: 'upn',
  }),
  OIDC_UNTYPED_TOKENS: boolean.default(false).meta({
    description: 'Also accept access tokens whose `typ` is not `at+jwt`. Tokens that look like ID tokens are rejected.',
    example: 'true',
  }),
  OIDC_NBF_REQUIRED: boolean.default(false).meta({
    description: 'Reject tokens without `nbf`. RFC 9068 does not require it.',
    example: 'true',
  }),
  OIDC_MAX_LIFETIME_SECONDS: integer(60, 604_800).default(7_200).meta({
    description: 'Reject tokens that expire later than this many seconds from now, because a JWT cannot be revoked.',
    example: '86400',
  }),
};

function isIssuer(text: string): boolean {
  return isTrustworthyUrl(text) && !/[?#]/.test(text);
}

type OidcVariables = z.infer<z.ZodObject<typeof oidcEnvironment>>;

/** The contradictions between these settings, one line each. */
export function oidcProblems(given: OidcVariables): string[] {
  const { OIDC_ISSUER, OIDC_AUDIENCE, OIDC_ORGANIZATION, OIDC_ORGANIZATION_CLAIM, OIDC_ORGANIZATIONS } = given;
  const others = { OIDC_AUDIENCE, OIDC_ORGANIZATION, OIDC_ORGANIZATION_CLAIM, OIDC_ORGANIZATIONS };
  if (OIDC_ISSUER === undefined) {
    const idle = Object.entries(others).filter(([, value]) => value !== undefined);
    return idle.map(([name]) => `${name} is set without OIDC_ISSUER, so it has no effect. Set both or neither.`);
  }
  const problems: string[] = [];
  if (OIDC_AUDIENCE === undefined) {
    problems.push('OIDC_AUDIENCE must be set with OIDC_ISSUER. Otherwise any token of the issuer would be accepted.');
  }
  if ((OIDC_ORGANIZATION === undefined) === (OIDC_ORGANIZATION_CLAIM === undefined)) {
    problems.push('Either OIDC_ORGANIZATION or OIDC_ORGANIZATION_CLAIM must be set with OIDC_ISSUER.');
  }
  if (OIDC_ORGANIZATIONS !== undefined && OIDC_ORGANIZATION_CLAIM === undefined) {
    problems.push('OIDC_ORGANIZATIONS needs OIDC_ORGANIZATION_CLAIM, whose values it maps. Set both.');
  }
  return problems;
}

/** Undefined if no identity provider is configured. */
export function oidcSettingsOf(given: OidcVariables): OidcSettings | undefined {
  const { OIDC_ISSUER: issuer, OIDC_AUDIENCE: audience, OIDC_ORGANIZATION: id, OIDC_ORGANIZATION_CLAIM: claim } = given;
  if (issuer === undefined || audience === undefined) return undefined;
  return {
    issuer,
    audience,
    audienceClaim: given.OIDC_AUDIENCE_CLAIM,
    organization: id === undefined ? { claim: claim ?? '', ids: given.OIDC_ORGANIZATIONS } : { id },
    rolesClaim: given.OIDC_ROLES_CLAIM,
    rolesOf: { read: given.OIDC_READ_ROLES, write: given.OIDC_WRITE_ROLES, reveal: given.OIDC_REVEAL_ROLES },
    nameClaim: given.OIDC_NAME_CLAIM,
    emailClaim: given.OIDC_EMAIL_CLAIM,
    acceptsUntypedTokens: given.OIDC_UNTYPED_TOKENS,
    requiresNbf: given.OIDC_NBF_REQUIRED,
    maxLifetimeSeconds: given.OIDC_MAX_LIFETIME_SECONDS,
  };
}
