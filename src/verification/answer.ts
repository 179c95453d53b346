import type { FastifyReply } from 'fastify';
import type { Verdict } from './verifier.ts';

/**
 * Answers at once where the verdict comes from memory, else when it is there: a promise for each request would take
 * longer than the verdict. What `answer` throws is answered as an error.
 */
export function answerWith(
  reply: Pick<FastifyReply, 'send'>,
  verdict: Verdict | Promise<Verdict>,
  answer: (verdict: Verdict) => void,
): void {
  if (verdict instanceof Promise) verdict.then(answer).catch((error: unknown) => reply.send(error));
  else answer(verdict);
}
