import type { FastifyRequest } from 'fastify';
import { type ListId, listId } from '../domain/page.ts';
import { accessTokenOf } from './guard.ts';

/** Identifies the list that a request reads: route, organization, path and query, without `limit` and `cursor`. */
export function listOf(request: FastifyRequest): ListId {
  const { limit: _limit, cursor: _cursor, ...filters } = request.query as Record<string, unknown>;
  const { url } = request.routeOptions;
  return listId({ url, organization: accessTokenOf(request).actsIn, params: request.params, filters });
}
