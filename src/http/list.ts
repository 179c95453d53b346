import type { FastifyRequest } from 'fastify';
import { type ListId, listId } from '../domain/page.ts';
import { accessTokenOf } from './guard.ts';

/** Which list a request reads: the route, the organization, and all of the path and the query but the page itself. */
export function listOf(request: FastifyRequest): ListId {
  const { limit: _limit, cursor: _cursor, ...filters } = request.query as Record<string, unknown>;
  const { url } = request.routeOptions;
  return listId({ url, organization: accessTokenOf(request).actsIn, params: request.params, filters });
}
