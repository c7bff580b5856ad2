/** Local-first client of shapefeed: shapes in PGlite, offline writes, live queries. */
export type * from './types.js'
