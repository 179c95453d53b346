interface Report {
  userLimits?: { open_files?: { soft?: number | string } };
}

/** How many files and sockets this process may have open at once; undefined where the system has no such limit. */
export function descriptorLimit(): number | undefined {
  const { report } = process;
  // Otherwise the report looks up the names of all peers. Node has this member from 20.13 on; its types do not.
  Object.assign(report, { excludeNetwork: true });
  const { userLimits } = report.getReport() as Report;
  const soft = userLimits?.open_files?.soft;
  return typeof soft === 'number' ? soft : undefined;
}
