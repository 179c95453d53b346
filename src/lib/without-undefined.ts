type Defined<Given> = { [Member in keyof Given]?: Exclude<Given[Member], undefined> };

/** The members that are set, for a change that leaves the others as they are. */
export function withoutUndefined<Given extends object>(given: Given): Defined<Given> {
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) as Defined<Given>;
}
