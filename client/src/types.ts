/** What an application gives and gets. Everything here can be sent from a worker to its pages, but for functions. */
import type { PGlite, PGliteInterface, Results, Transaction } from '@electric-sql/pglite'
import type { LiveNamespace } from '@electric-sql/pglite/live'

/** A shape: rows of one table that a client follows. Two definitions with the same content are one shape. */
export type ShapeDefinition = TableShape | NamedShape

/** A shape in so many words; the parameters of `/v1/shape`. */
export interface TableShape {
  /** As in SQL: `folders`, `app.folders`. */
  table: string
  /** Condition of rows that are in it, with `$1`, `$2`, … for `params`. @default all rows */
  where?: string
  /** Values of `$1`, `$2`, …, in Postgres' text form. */
  params?: readonly (string | number | boolean)[]
  /** Columns, those of the primary key among them. @default all columns */
  columns?: readonly string[]
}

/** A shape that the database keeps (`shapefeed.create_shape`). */
export interface NamedShape {
  shape: string
  /** Its table, so that this is there before its first row has come. */
  table?: string
  /** Values of its parameters. */
  params?: Readonly<Record<string, string | number | boolean>>
}

/** What a stream does: it reads the snapshot, is at the end of the log, waits after a failure, or is not followed any more. */
export type ShapeState = 'loading' | 'live' | 'waiting' | 'stopped'

/** How a shape is doing. */
export interface ShapeStatus {
  status: ShapeState
  /** Local rows were once all of the shape's rows, and nothing is known to be missing since. True offline, too. */
  isUpToDate: boolean
  /** When the server last said that this is all (milliseconds since 1970), also from an earlier run. */
  lastSynced?: number
  /** Why nothing comes, as long as nothing comes. */
  error?: SyncError
  /** Columns that the server has and the application's own schema has not: an update may be available. */
  unknownColumns?: string[]
  /** Local table; known once the server has described it. */
  table?: string
}

/** A failure, in a form that can be sent from a worker. */
export interface SyncError {
  message: string
  /** HTTP status, where the server said no. */
  httpStatus?: number
  /** SQLSTATE, where the local database did. */
  sqlstate?: string
}

/** A followed shape. The shape is followed as long as one handle of it is not released. */
export interface ShapeHandle extends ShapeStatus {
  readonly definition: ShapeDefinition
  /** Calls back when its status changes; returns the function that ends that. */
  subscribe(callback: (status: ShapeStatus) => void): () => void
  /** Resolves when the shape is up to date, for the first time or again. */
  upToDate(): Promise<void>
  /**
   * Lets go of it. Its rows stay for `keepFor`, and are brought up to date now and then; the next handle of the same shape goes on
   * where they are.
   */
  release(): void
}

/** How the client is doing. */
export interface SyncStatus {
  /** The last request reached the server. */
  online: boolean
  /** Local transactions that the server has not answered yet. */
  pending: number
  /** Transactions that the server rejected and nobody has retried or discarded. */
  rejected: number
  /** This instance has the database, streams and the sender; other tabs use it. */
  leader: boolean
  /** The server wants another token (401), and `getToken` has none yet. */
  unauthorized: boolean
  /** Why nothing is sent, as long as nothing is sent. */
  error?: SyncError
}

/** One change of a row, as it is sent. Values are in Postgres' text form. */
export interface Operation {
  operation: 'insert' | 'update' | 'delete'
  /** As in shapes. */
  table: string
  /** All columns of the primary key. */
  key: Record<string, string>
  /** insert: all values that were given; update: those that changed. */
  value?: Record<string, string | null>
  /** update, delete: the values before. */
  base?: Record<string, string | null>
}

/** A transaction that the server rejected: it is undone here, and this is what is left of it. */
export interface Rejection {
  id: number
  /** Milliseconds since 1970. */
  rejectedAt: number
  sqlstate: string
  constraint?: string
  message: string
  /** Index of the operation that failed, if it was one. */
  operation?: number
  operations: Operation[]
}

/** Plain SQL. Writes to tables of shapes are kept, sent and confirmed on their own. */
export interface Database {
  query<T = Record<string, unknown>>(sql: string, params?: unknown[]): Promise<Results<T>>
  /** What is written in one local transaction becomes one transaction on the server: all of it or nothing. */
  transaction<T>(work: (tx: Transaction) => Promise<T>): Promise<T>
  exec(sql: string): Promise<Results[]>
}

/** PGlite with what the client needs of it; a `PGliteWorker` has it, too. */
export type LivePGlite = PGliteInterface & { live: LiveNamespace }

/** Ends a live query. */
export type Unsubscribe = () => Promise<void>

/** A client; see `createSync`. */
export interface Sync {
  readonly db: Database
  /** The PGlite underneath. */
  readonly pglite: LivePGlite
  /** Follows a shape. Its table is made when the server has described it, unless the schema has it. */
  shape(definition: ShapeDefinition): ShapeHandle
  /**
   * Runs a query, and again whenever one of its tables changes. A table that is not there yet has no rows; one that is
   * altered is looked at anew.
   */
  live<T = Record<string, unknown>>(sql: string, params: unknown[] | undefined, callback: (rows: T[]) => void,
    onError?: (error: Error) => void): Promise<Unsubscribe>
  status(): SyncStatus
  /** Calls back when the status changes; returns the function that ends that. */
  subscribe(callback: (status: SyncStatus) => void): () => void
  /** Rejected transactions, oldest first. They are rows of `sync.rejection` as well, for live queries. */
  rejections(): Promise<Rejection[]>
  /** Writes a rejected transaction once more, on top of what is there now. */
  retry(rejection: number): Promise<void>
  /** Forgets a rejected transaction. */
  discard(rejection: number): Promise<void>
  /** Forgets a shape that nobody follows: rows that no other shape has are removed. */
  forget(definition: ShapeDefinition): Promise<void>
  /** Tries at once what waits: call it when the network is back or there is a new token. */
  wake(): void
  /** Resolves when all local transactions are answered by the server. */
  sent(): Promise<void>
  /** Stops streams and the sender, and closes the database if `createSync` opened it. */
  close(): Promise<void>
}

/** Options of `createSync`. */
export interface SyncOptions {
  /** Of the sidecar, without `/v1`: `https://sync.example.com`. */
  url: string
  /** Whose data this is: another user gets another database. */
  userId: string
  /**
   * A token for `Authorization: Bearer`. Called once, and again with the token that the server refused; until it returns
   * another one, everything waits.
   * @default no token
   */
  getToken?: (refused?: string) => string | undefined | Promise<string | undefined>
  /** An open PGlite with the extension `live`. @default one at `dataDir` */
  pglite?: PGlite & { live: LiveNamespace }
  /** Where PGlite keeps the database, if `pglite` is not given. @default `memory://` */
  dataDir?: string
  /** The application's own tables, views and indexes. Tables without foreign keys and without unique constraints but the primary key. */
  schema?: LocalSchema
  /** Tables whose changed rows are rejected if the server's row is not what was changed here. @default none: columns are merged */
  rejectIfChanged?: readonly string[]
  /**
   * How long rows of a shape that nobody follows stay, in milliseconds. Those that the user may not see any more go as soon as the
   * server says so.
   * @default 30 days
   */
  keepFor?: number
  /** Parameters of every request, such as `secret`. */
  params?: Readonly<Record<string, string>>
  /** @default the global one */
  fetch?: typeof fetch
  /** Is told of failures that nobody asked about. @default console.error */
  onError?: (error: unknown) => void
}

/** SQL that is run once for each version, in a transaction. Columns that it does not name are ignored and reported. */
export interface LocalSchema {
  version: number
  sql: string
}
