/** Local-first client of shapefeed: shapes in PGlite, offline writes, live queries. */
export { createSync, prepareDatabase } from './sync.js'
export { liveQuery } from './live.js'
export { canonical as shapeKey } from './sync.js'
export type * from './types.js'
