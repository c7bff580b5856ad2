/** What the nodes of the tree share. */
import type { ComputedRef, InjectionKey, Ref } from 'vue'

export interface Folder {
  id: number
  parent_id: number | null
  name: string
}

export interface FolderTree {
  children: ComputedRef<Map<number | null, Folder[]>>
  /** Whose name is being changed. */
  editing: Ref<number | undefined>
  opened: Ref<Set<number>>
  add(parent: number | null): Promise<void>
  rename(id: number, name: string): Promise<void>
  remove(id: number): unknown
}

export const folderKey: InjectionKey<FolderTree> = Symbol('folders')
