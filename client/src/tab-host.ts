/** The leader's side of tabs: what each of them follows and asks, until it says goodbye or is gone. */
import { sendable, sharedChannel, tabChannel, tabLock } from './channel.js'
import type { LeaderCalls, ToLeader, ToTab, ToTabs } from './channel.js'
import type { Sync, SyncStatus, Unsubscribe } from './types.js'

/** How long tabs may think about a token before everything waits for the next try. */
const tokenTimeoutMs = 5_000

/** One tab at the leader. */
interface Tab {
  channel: BroadcastChannel
  /** Ends what it follows and its live queries, by ref. */
  endings: Map<number, () => void>
  endStatus: () => void
}

/** Serves the tabs of one user with a `Sync`. */
export class TabHost {
  readonly #shared: BroadcastChannel
  readonly #tabs = new Map<string, Tab>()
  readonly #asked = new Map<string, (token: string | undefined) => void>()
  #sync: Sync | undefined

  /** `leader`: the tab whose worker this is. */
  constructor(id: string, private readonly leader: string) {
    this.#shared = new BroadcastChannel(sharedChannel(id))
    this.#shared.onmessage = ({ data }) => this.#take(data as ToLeader)
  }

  /** Begins to serve: tabs are told, and say what they want. */
  serve(sync: Sync): void {
    this.#sync = sync
    this.#tell({ type: 'leader' })
  }

  /** Tells tabs that there will be no database, as nothing else would. */
  fail(error: unknown): void {
    this.#tell({ type: 'failed', error: sendable(error) })
  }

  /** The first token that a tab has, other than the refused one. */
  askToken(refused?: string): Promise<string | undefined> {
    const ask = crypto.randomUUID()
    return new Promise((resolve) => {
      const done = (token: string | undefined) => {
        this.#asked.delete(ask)
        clearTimeout(timer)
        resolve(token)
      }
      const timer = setTimeout(done, tokenTimeoutMs, undefined)
      this.#asked.set(ask, done)
      this.#tell({ type: 'askToken', ask, refused })
    })
  }

  #tell(message: ToTabs): void {
    this.#shared.postMessage(message)
  }

  #take(message: ToLeader): void {
    if (message.type === 'token') {
      if (message.token !== undefined) this.#asked.get(message.ask)?.(message.token)
    } else if (this.#sync && 'tab' in message) {
      this.#serveTab(this.#sync, this.#tabs.get(message.tab) ?? this.#join(this.#sync, message.tab), message)
    }
  }

  #serveTab(sync: Sync, tab: Tab, message: Exclude<ToLeader, { type: 'token' }>): void {
    if (message.type === 'hello') {
      this.#tellStatus(tab.channel, message.tab, sync.status())
    } else if (message.type === 'call') {
      void this.#call(sync, tab, message)
    } else if (message.type === 'release' || message.type === 'endQuery') {
      tab.endings.get(message.ref)?.()
      tab.endings.delete(message.ref)
    } else if (!tab.endings.has(message.ref)) {
      tab.endings.set(message.ref, message.type === 'follow' ? follow(sync, tab, message) : liveQuery(sync, tab, message))
    }
  }

  #join(sync: Sync, name: string): Tab {
    const channel = new BroadcastChannel(tabChannel(name))
    const endStatus = sync.subscribe((status) => this.#tellStatus(channel, name, status))
    const tab: Tab = { channel, endings: new Map(), endStatus }
    this.#tabs.set(name, tab)
    // It is ours when the tab is no more.
    void navigator.locks.request(tabLock(name), () => this.#leave(name))
    return tab
  }

  #tellStatus(channel: BroadcastChannel, tab: string, status: SyncStatus): void {
    channel.postMessage({ type: 'status', status: { ...status, leader: tab === this.leader } } satisfies ToTab)
  }

  #leave(name: string): void {
    const tab = this.#tabs.get(name)
    this.#tabs.delete(name)
    for (const end of tab?.endings.values() ?? []) end()
    tab?.endStatus()
    tab?.channel.close()
  }

  async #call(sync: Sync, tab: Tab, { ref, method, args }: Extract<ToLeader, { type: 'call' }>): Promise<void> {
    const calls: LeaderCalls = sync
    try {
      const value: unknown = await (calls[method] as (...args: unknown[]) => unknown).apply(sync, args)
      tab.channel.postMessage({ type: 'result', ref, value } satisfies ToTab)
    } catch (error) {
      tab.channel.postMessage({ type: 'callError', ref, error: sendable(error) } satisfies ToTab)
    }
  }
}

function follow(sync: Sync, tab: Tab, { ref, definition }: Extract<ToLeader, { type: 'follow' }>): () => void {
  const handle = sync.shape(definition)
  const { status, isUpToDate, lastSynced, error, unknownColumns, table } = handle
  tab.channel.postMessage({ type: 'shape', ref, status: { status, isUpToDate, lastSynced, error, unknownColumns, table } } satisfies ToTab)
  const end = handle.subscribe((status) => tab.channel.postMessage({ type: 'shape', ref, status } satisfies ToTab))
  return () => {
    end()
    handle.release()
  }
}

function liveQuery(sync: Sync, tab: Tab, { ref, sql, params }: Extract<ToLeader, { type: 'query' }>): () => void {
  const tell = (error: unknown) => tab.channel.postMessage({ type: 'queryError', ref, error: sendable(error) } satisfies ToTab)
  const running: Promise<Unsubscribe | undefined> = sync.live(sql, params,
    (rows) => tab.channel.postMessage({ type: 'rows', ref, rows } satisfies ToTab), tell)
    .catch((error: unknown) => { tell(error); return undefined })
  return () => void running.then((end) => end?.())
}

