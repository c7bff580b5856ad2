/** What tabs and the leader, the worker that has the database, say to each other over a BroadcastChannel. */
import type { Rejection, ShapeDefinition, ShapeStatus, SyncError, SyncStatus } from './types.js'

/** Methods of `Sync` that tabs have the leader call. */
export interface LeaderCalls {
  rejections(): Promise<Rejection[]>
  retry(rejection: number): Promise<void>
  discard(rejection: number): Promise<void>
  forget(definition: ShapeDefinition): Promise<void>
  wake(): void
  sent(): Promise<void>
}

/** From a tab. `ref` names a shape or a live query among those of the tab; what comes twice is taken once. */
export type ToLeader =
  | { type: 'hello'; tab: string }
  | { type: 'follow'; tab: string; ref: number; definition: ShapeDefinition }
  | { type: 'release'; tab: string; ref: number }
  | { type: 'query'; tab: string; ref: number; sql: string; params: unknown[] | undefined }
  | { type: 'endQuery'; tab: string; ref: number }
  | { type: 'call'; tab: string; ref: number; method: keyof LeaderCalls; args: unknown[] }
  | { type: 'token'; ask: string; token: string | undefined }

/** From the leader to all tabs: it is there; it cannot be; it needs a token. */
export type ToTabs =
  | { type: 'leader' }
  | { type: 'failed'; error: SyncError }
  | { type: 'askToken'; ask: string; refused: string | undefined }

/** From the leader to one tab. */
export type ToTab =
  | { type: 'status'; status: SyncStatus }
  | { type: 'shape'; ref: number; status: ShapeStatus }
  | { type: 'rows'; ref: number; rows: Record<string, unknown>[] }
  | { type: 'queryError'; ref: number; error: SyncError }
  | { type: 'result'; ref: number; value: unknown }
  | { type: 'callError'; ref: number; error: SyncError }

/** What the tabs of one user at one server share. */
export const sharedChannel = (id: string) => `shapefeed:${id}`
/** What the leader sends to one tab. */
export const tabChannel = (tab: string) => `shapefeed-tab:${tab}`
/** A lock that a tab holds as long as it lives. */
export const tabLock = (tab: string) => `shapefeed-tab:${tab}`

/** An error as it can be sent. */
export function sendable(error: unknown): SyncError {
  const { message, httpStatus, sqlstate, code } = error as Partial<SyncError> & { code?: string }
  return { message: message ?? String(error), ...(httpStatus && { httpStatus }), ...((sqlstate ?? code) && { sqlstate: sqlstate ?? code }) }
}

/** An error as it came. */
export const received = (error: SyncError): Error & SyncError => Object.assign(new Error(error.message), error)
