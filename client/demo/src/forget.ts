/** Rows of shapes that nobody follows stay, for the next visit. Of what one may not see any more, they must not. */
import { watch, type Ref } from 'vue'
import type { ShapeDefinition } from 'shapefeed'
import { companyShapes, useQuery, useSync, workspaceShapes } from 'shapefeed/vue'

type Ids = Ref<readonly number[] | undefined>

const isOf = (shapes: (id: number) => ShapeDefinition[], definition: ShapeDefinition, id: number) =>
  shapes(id).some((it) => JSON.stringify(it) === JSON.stringify(definition))

/** Forgets shapes of companies and workspaces that are not among those of this user, once it is known which these are. */
export function useForgetting(companies: Ids, workspaces: Ids): void {
  const sync = useSync()
  const left = useQuery<{ definition: string; id: number }>(
    `select definition::text as definition, (definition -> 'params' ->> 0)::int as id from sync.stream where not active and definition ? 'params'`)

  watch([left.rows, companies, workspaces], async () => {
    for (const { definition: text, id } of left.rows.value) {
      const { table, where, params } = JSON.parse(text) as Extract<ShapeDefinition, { table: string }>
      const definition: ShapeDefinition = { table, where, params }
      const isGone = (companies.value && !companies.value.includes(id) && isOf(companyShapes, definition, id))
        || (workspaces.value && !workspaces.value.includes(id) && isOf(workspaceShapes, definition, id))
      if (isGone) await sync.forget(definition)
    }
  })
}
