import { z } from 'zod';
import { idSuffixPattern, type OrganizationId } from '../core/ids.ts';

/** Which identity provider admins may come from, and what its tokens mean here. */
export interface OidcSettings {
  /** As tokens name it in `iss`, to the letter. */
  issuer: string;
  audience: string;
  organization: FixedOrganization | ClaimedOrganization;
  rolesClaim: string;
  /** Values of that claim that give the scope. */
  readRoles: readonly string[];
  writeRoles: readonly string[];
  nameClaim: string;
  emailClaim: string;
  /** Whether access tokens are taken that do not say by `typ` that they are such. */
  takesUntypedTokens: boolean;
  requiresNbf: boolean;
}

/** Everybody whom the issuer vouches for belongs to one organization. */
interface FixedOrganization {
  id: OrganizationId;
}

interface ClaimedOrganization {
  claim: string;
  /** What the claim's values mean; undefined: they are ids themselves. */
  ids: ReadonlyMap<string, OrganizationId> | undefined;
}

const organizationId = new RegExp(`^org_${idSuffixPattern}$`);

const claim = z
  .string()
  .max(200)
  .regex(/^[^\s,]+$/, 'must be the name of a claim');

const values = z
  .string()
  .transform((text) => text.split(',').map((part) => part.trim()))
  .refine((parts) => parts.every((part) => part !== ''), 'must be values with commas between them');

const organizations = z
  .string()
  .transform((text) => text.split(',').map((pair) => pair.split('=').map((part) => part.trim())))
  .refine(
    (pairs) => pairs.every(([value, id, ...more]) => value && id && organizationId.test(id) && more.length === 0),
    'must be pairs of a value and the id of an organization',
  )
  .refine((pairs) => new Set(pairs.map(([value]) => value)).size === pairs.length, 'must not name a value twice')
  .transform((pairs) => new Map(pairs.map(([value = '', id = '']) => [value, id as OrganizationId])));

const switchOf = z.enum(['true', 'false'], 'must be true or false').transform((text) => text === 'true');

const exampleOrganization = 'org_01k9s3v5wqe8n8x4r2m6t7yb0c';

/** The variables about it; `config.ts` has all the others. */
export const oidcEnvironment = {
  OIDC_ISSUER: z
    .string()
    .refine(isIssuer, 'must be the https:// URL of an identity provider, without query and fragment')
    .optional()
    .meta({
      description:
        "The company's identity provider, as its tokens name it in `iss`: admins may come with its access tokens (docs/oidc.md). Not set: nobody may.",
      example: 'https://login.example.com/realms/company',
    }),
  OIDC_AUDIENCE: z.string().max(500).optional().meta({
    description: 'What its tokens name in `aud` if they are for Latchkey; needed with OIDC_ISSUER.',
    example: 'https://latchkey.example.com',
  }),
  OIDC_ORGANIZATION: z
    .string()
    .regex(organizationId, 'must be the id of an organization')
    .transform((text) => text as OrganizationId)
    .optional()
    .meta({ description: 'The organization of everybody who comes from there.', example: exampleOrganization }),
  OIDC_ORGANIZATION_CLAIM: claim.optional().meta({
    description: 'Instead of OIDC_ORGANIZATION: the claim that says which organization somebody belongs to.',
    example: 'organization',
  }),
  OIDC_ORGANIZATIONS: organizations.optional().meta({
    description:
      'What the values of that claim mean: `value=org_…`, with commas. Not set: they are ids of organizations.',
    example: `acme=${exampleOrganization}`,
  }),
  OIDC_ROLES_CLAIM: claim.default('roles').meta({
    description: 'The claim whose values say what somebody may do: a list, or a text with spaces.',
    example: 'realm_access.roles',
  }),
  OIDC_READ_ROLES: values.default(['latchkey-read']).meta({
    description: 'Its values that give an admin the scope `read`; with commas.',
    example: 'latchkey-auditor,latchkey-admin',
  }),
  OIDC_WRITE_ROLES: values.default(['latchkey-write']).meta({
    description: 'Its values that give an admin the scope `write`; with commas.',
    example: 'latchkey-admin',
  }),
  OIDC_NAME_CLAIM: claim.default('name').meta({
    description: "The claim with a person's name, for history.",
    example: 'preferred_username',
  }),
  OIDC_EMAIL_CLAIM: claim.default('email').meta({
    description: "The claim with a person's e-mail address, for history.",
    example: 'upn',
  }),
  OIDC_UNTYPED_TOKENS: switchOf.default(false).meta({
    description: 'Take access tokens whose `typ` is not `at+jwt` too; what looks like an ID token is refused.',
    example: 'true',
  }),
  OIDC_NBF_REQUIRED: switchOf.default(true).meta({
    description: 'Refuse tokens without `nbf`; false for providers that send none.',
    example: 'false',
  }),
};

/** http leads to this machine alone: what is fetched there decides who is an admin. */
function isIssuer(text: string): boolean {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || /[?#\s]/.test(text) || url.username + url.password !== '') return false;
  return url.protocol === 'https:' || (url.protocol === 'http:' && isLoopback(url.hostname));
}

export function isLoopback(hostname: string): boolean {
  return ['localhost', '127.0.0.1', '[::1]'].includes(hostname);
}

type OidcVariables = z.infer<z.ZodObject<typeof oidcEnvironment>>;

/** What does not fit together, one line each. */
export function oidcProblems(given: OidcVariables): string[] {
  const { OIDC_ISSUER, OIDC_AUDIENCE, OIDC_ORGANIZATION, OIDC_ORGANIZATION_CLAIM, OIDC_ORGANIZATIONS } = given;
  const others = { OIDC_AUDIENCE, OIDC_ORGANIZATION, OIDC_ORGANIZATION_CLAIM, OIDC_ORGANIZATIONS };
  if (OIDC_ISSUER === undefined) {
    const idle = Object.entries(others).filter(([, value]) => value !== undefined);
    return idle.map(
      ([name]) => `${name} is set without OIDC_ISSUER, and nobody would come from there: set both or neither.`,
    );
  }
  const problems: string[] = [];
  if (OIDC_AUDIENCE === undefined) {
    problems.push('OIDC_AUDIENCE must be set with OIDC_ISSUER: any token of the issuer would do otherwise.');
  }
  if ((OIDC_ORGANIZATION === undefined) === (OIDC_ORGANIZATION_CLAIM === undefined)) {
    problems.push('Either OIDC_ORGANIZATION or OIDC_ORGANIZATION_CLAIM must be set with OIDC_ISSUER.');
  }
  if (OIDC_ORGANIZATIONS !== undefined && OIDC_ORGANIZATION_CLAIM === undefined) {
    problems.push('OIDC_ORGANIZATIONS says what values of OIDC_ORGANIZATION_CLAIM mean: set that too.');
  }
  return problems;
}

/** Undefined where nobody comes from an identity provider. */
export function oidcSettingsOf(given: OidcVariables): OidcSettings | undefined {
  const { OIDC_ISSUER: issuer, OIDC_AUDIENCE: audience, OIDC_ORGANIZATION: id, OIDC_ORGANIZATION_CLAIM: claim } = given;
  if (issuer === undefined || audience === undefined) return undefined;
  return {
    issuer,
    audience,
    organization: id === undefined ? { claim: claim ?? '', ids: given.OIDC_ORGANIZATIONS } : { id },
    rolesClaim: given.OIDC_ROLES_CLAIM,
    readRoles: given.OIDC_READ_ROLES,
    writeRoles: given.OIDC_WRITE_ROLES,
    nameClaim: given.OIDC_NAME_CLAIM,
    emailClaim: given.OIDC_EMAIL_CLAIM,
    takesUntypedTokens: given.OIDC_UNTYPED_TOKENS,
    requiresNbf: given.OIDC_NBF_REQUIRED,
  };
}
