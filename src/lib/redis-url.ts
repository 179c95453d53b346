const clusterUrl = /^(rediss?)\+cluster:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?([^@/?#\s]+?)\/?$/;

/** Whether this is the URL of a Redis Cluster: `redis+cluster://host:port,host:port`, or `rediss+cluster` with TLS. */
export function isClusterUrl(url: string): boolean {
  return clusterNodes(url) !== undefined;
}

/** The nodes to ask for the cluster's topology, and how to log in at each of them. */
export interface ClusterNodes {
  nodes: Array<{ host: string; port: number }>;
  options: { username?: string; password?: string; tls?: object };
}

/** Undefined if it is not the URL of a cluster. */
export function clusterNodes(url: string): ClusterNodes | undefined {
  const [, scheme, username = '', password = '', hosts = ''] = clusterUrl.exec(url) ?? [];
  if (scheme === undefined) return undefined;
  const nodes = hosts.split(',').map((host) => {
    const parsed = URL.canParse(`redis://${host}`) ? new URL(`redis://${host}`) : undefined;
    return { host: parsed?.hostname.replace(/^\[|\]$/g, '') ?? '', port: Number(parsed?.port || 6_379) };
  });
  if (nodes.some(({ host }) => host === '')) return undefined;
  const options = {
    ...(username === '' ? {} : { username: decodeURIComponent(username) }),
    ...(password === '' ? {} : { password: decodeURIComponent(password) }),
    ...(scheme === 'rediss' ? { tls: {} } : {}),
  };
  return { nodes, options };
}
