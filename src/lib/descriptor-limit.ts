interface Report {
  userLimits?: { open_files?: { soft?: number | string } };
}

/** The maximum number of open files and sockets of this process; undefined if the system has no such limit. */
export function descriptorLimit(): number | undefined {
  const { report } = process;
  // Without this, the report resolves the names of all peers. Node has this member since 20.13; its types do not.
  Object.assign(report, { excludeNetwork: true });
  const { userLimits } = report.getReport() as Report;
  const soft = userLimits?.open_files?.soft;
  return typeof soft === 'number' ? soft : undefined;
}
