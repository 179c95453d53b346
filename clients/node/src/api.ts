// Written by `npm run openapi` from openapi/openapi.json.
export interface components {
    schemas: {
        /**
         * @example {
         *       "key": "lk_k_01k9s3v5wqe8n8x4r2m6t7yb0c_Vx0…",
         *       "permission": "read",
         *       "ip": "203.0.113.7"
         *     }
         */
        VerifyBatchEntry: {
            /** @description The API key exactly as the client sent it. Any text is accepted; text that is not a key gets the code `malformed`. */
            key: string;
            /** @description What the client is about to do: read or write. */
            permission: components["schemas"]["Access"];
            /** @description The client's address. Port, brackets and zone are ignored. Text without an address, such as `unknown`, counts as no address: a key with allowedIps is then rejected with `ip_not_allowed`; other keys are not affected. */
            ip?: string | null;
            /**
             * @description All of them must be on the key.
             * @example [
             *       "invoices:read"
             *     ]
             */
            scopes?: string[];
            /** @description How much this counts against the limits; 0 counts nothing. Without `uses` at most 1000. */
            cost?: number;
            /** @description Number of uses that the backend already allowed by a cached verdict. They are counted whatever the key's state is now, with `cost` for all of them. */
            uses?: number;
        };
        /**
         * @description The kind of access that a client requests or a key permits.
         * @enum {string}
         */
        Access: "read" | "write";
        VerdictOrProblem: components["schemas"]["Verdict"] | components["schemas"]["Problem"];
        /** @description If `code` is `malformed` or `not_found`, all members that describe the key are null. */
        Verdict: {
            valid: boolean;
            code: components["schemas"]["VerdictCode"];
            keyId: string | null;
            organizationId: string | null;
            partnerId: string | null;
            /**
             * @description The partner's `externalId`.
             * @example customer-4711
             */
            partnerExternalId: string | null;
            /** @example team@partner.example */
            partnerEmail: string | null;
            permission: components["schemas"]["Permission"] | null;
            /**
             * @example [
             *       "invoices:read"
             *     ]
             */
            scopes: string[] | null;
            /** @example Billing export */
            name: string | null;
            metadata: {
                [key: string]: unknown;
            } | null;
            expiresAt: string | null;
            /**
             * @description Whether the key has allowedIps, so that the verdict holds only for this address.
             * @example false
             */
            dependsOnIp: boolean | null;
            /** @description The limit that rejected the use, otherwise the limit with the least remaining. Null if something else rejected the key. */
            rateLimit: components["schemas"]["LimitCount"] | null;
        };
        /** @enum {string} */
        VerdictCode: "valid" | "malformed" | "not_found" | "deleted" | "suspended" | "partner_suspended" | "expired" | "ip_not_allowed" | "insufficient_permission" | "insufficient_scope" | "rate_limited";
        /**
         * @description The access that a key permits. Only keys of the organization's own row can have `read_write`.
         * @enum {string}
         */
        Permission: "read" | "write" | "read_write";
        /**
         * @example {
         *       "policy": "owner",
         *       "limit": 1000,
         *       "windowSeconds": 60,
         *       "remaining": 999,
         *       "resetSeconds": 60
         *     }
         */
        LimitCount: {
            /** @description `owner`: the limit that all keys of the owner share. `key`: the key's own limit. */
            policy: components["schemas"]["LimitPolicy"];
            limit: number;
            windowSeconds: number;
            remaining: number;
            resetSeconds: number;
        };
        /** @enum {string} */
        LimitPolicy: "owner" | "key";
        /**
         * @description A problem document (RFC 9457). `type` is a path of this service that explains the problem and its remedy.
         * @example {
         *       "type": "/problems/not_found",
         *       "title": "Not found",
         *       "status": 404,
         *       "detail": "There is no such key in this organization.",
         *       "code": "not_found",
         *       "requestId": "019abf6e-7c2e-7f4e-9a61-0f0f6d5b9c11",
         *       "traceId": "019abf6e7c2e7f4e9a610f0f6d5b9c11"
         *     }
         */
        Problem: {
            /** Format: uri-reference */
            type: string;
            title: string;
            status: number;
            detail: string;
            code: components["schemas"]["ProblemCode"];
            requestId: string;
            /** @description The trace id (W3C Trace Context): the caller's own if the request has one. */
            traceId: string;
            errors?: components["schemas"]["ProblemError"][];
        } & {
            [key: string]: unknown;
        };
        /** @enum {string} */
        ProblemCode: "bad_request" | "validation_failed" | "cost_exceeds_limit" | "secret_in_text" | "too_many_matches" | "cursor_invalid" | "unauthorized" | "token_malformed" | "token_expired" | "forbidden" | "scope_missing" | "self_service_disabled" | "reveal_disabled" | "not_found" | "method_not_allowed" | "request_timeout" | "conflict" | "key_exists" | "row_full" | "partner_exists" | "external_id_exists" | "not_restorable" | "already_deleted" | "idempotency_in_progress" | "history_altered" | "claim_gone" | "precondition_failed" | "payload_too_large" | "unsupported_media_type" | "expectation_failed" | "reply_gone" | "idempotency_mismatch" | "rate_limited" | "headers_too_large" | "internal" | "overloaded" | "unavailable";
        /**
         * @example {
         *       "path": "body.name",
         *       "message": "must not begin or end with white space"
         *     }
         */
        ProblemError: {
            path: string;
            message: string;
        };
    };
}
export type VerifyBatchEntry = components['schemas']['VerifyBatchEntry'];
export type Access = components['schemas']['Access'];
export type VerdictOrProblem = components['schemas']['VerdictOrProblem'];
export type Verdict = components['schemas']['Verdict'];
export type VerdictCode = components['schemas']['VerdictCode'];
export type Permission = components['schemas']['Permission'];
export type LimitCount = components['schemas']['LimitCount'];
export type LimitPolicy = components['schemas']['LimitPolicy'];
export type Problem = components['schemas']['Problem'];
export type ProblemCode = components['schemas']['ProblemCode'];
export type ProblemError = components['schemas']['ProblemError'];
