/** Who is signed in, in this tab. */
import { shallowRef } from 'vue'
import type { Sync } from 'shapefeed'
import { connectSync } from 'shapefeed/tabs'

/** Someone whom this demo lets you be. */
export interface User {
  id: number
  name: string
  about: string
  token: string
}

const key = 'atrium.user'

/** The user of this tab; two tabs may have two. */
export const user = shallowRef<User | undefined>(JSON.parse(sessionStorage.getItem(key) ?? localStorage.getItem(key) ?? 'null') ?? undefined)

/** Those who can be chosen. */
export async function users(): Promise<User[]> {
  return (await fetch('./users.json')).json()
}

export function signIn(chosen: User): void {
  user.value = chosen
  for (const storage of [sessionStorage, localStorage]) storage.setItem(key, JSON.stringify(chosen))
}

/** What is not sent yet stays in the user's database, for the next time. */
export function signOut(): void {
  for (const storage of [sessionStorage, localStorage]) storage.removeItem(key)
  location.reload()
}

export async function connect({ id, token }: User): Promise<Sync> {
  await navigator.storage?.persist?.()
  const worker = () => new Worker(new URL('./sync.worker.ts', import.meta.url), { type: 'module' })
  return connectSync({ worker, url: location.origin, userId: String(id), getToken: (refused) => (refused === undefined ? token : newToken(id, refused)) })
}

/** The demo was started anew with another secret: its tokens are others. */
async function newToken(id: number, refused: string): Promise<string | undefined> {
  const token = (await users().catch(() => [])).find((it) => it.id === id)?.token
  return token === refused ? undefined : token
}
