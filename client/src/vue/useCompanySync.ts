import { toValue, type MaybeRefOrGetter } from 'vue'
import type { ShapeDefinition } from '../types.js'
import { useShapes, type ShapeRefs } from './useShapes.js'

/** An id as tables have it. */
export type Id = string | number

/** A company and what it has, but for the contents of its workspaces: tables of sql/examples/foundation.sql. */
export const companyShapes = (id: Id): ShapeDefinition[] => [
  { table: 'companies', where: 'id = $1', params: [id] },
  { table: 'company_members', where: 'company_id = $1', params: [id] },
  { table: 'user_groups', where: 'company_id = $1', params: [id] },
  { table: 'user_group_members', where: 'group_id in (select id from user_groups where company_id = $1)', params: [id] },
  { table: 'workspaces', where: 'company_id = $1', params: [id] },
]

/** A workspace and its folders. */
export const workspaceShapes = (id: Id): ShapeDefinition[] => [
  { table: 'workspaces', where: 'id = $1', params: [id] },
  { table: 'folders', where: 'workspace_id = $1', params: [id] },
]

/** Follows a company while the scope lives; another one when the id changes. */
export function useCompanySync(id: MaybeRefOrGetter<Id | undefined>): ShapeRefs {
  return useShapes(() => shapesOf(companyShapes, toValue(id)))
}

/** Follows a workspace while the scope lives; another one when the id changes. */
export function useWorkspaceSync(id: MaybeRefOrGetter<Id | undefined>): ShapeRefs {
  return useShapes(() => shapesOf(workspaceShapes, toValue(id)))
}

const shapesOf = (shapes: (id: Id) => ShapeDefinition[], id: Id | undefined) => (id === undefined ? [] : shapes(id))
