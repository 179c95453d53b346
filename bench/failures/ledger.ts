/** A change that Latchkey has acknowledged. Times are monotonic milliseconds. */
export interface Acknowledged {
  action: string;
  /** The key, or the partner if the change is one of a partner. */
  id: string;
  /** When its first request was sent. */
  sentAtMs: number;
  acknowledgedAtMs: number;
}

/** How long a deleted key was accepted after its deletion was acknowledged. */
export interface Probe {
  acknowledgedAtMs: number;
  /** A replica, or the backend with the client. */
  where: string;
  /** From the acknowledgement to the last reply `valid`. 0: there was none. */
  validForMs: number;
  /** How many requests were rejected as they must be. */
  rejected: number;
}

export type RequestKind = 'verify' | 'fresh' | 'change';

/** One request and its reply. */
export interface Sent {
  kind: RequestKind;
  sentAtMs: number;
  repliedAtMs: number;
  /** The HTTP status, `none` without a complete reply, or `503 of HAProxy`: it had no replica. */
  status: string;
  isSuccess: boolean;
}

/** Everything that the load has seen. */
export interface Ledger {
  sent: Sent[];
  acknowledged: Acknowledged[];
  probes: Probe[];
  /** The status that each key must have at the end. */
  keys: Map<string, 'active' | 'suspended' | 'deleted'>;
  /** Requests that were repeated with their Idempotency-Key after their reply had arrived. */
  replays: number;
  /** What must never happen. */
  violations: string[];
}

export function createLedger(): Ledger {
  return { sent: [], acknowledged: [], probes: [], keys: new Map(), replays: 0, violations: [] };
}
