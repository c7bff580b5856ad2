// @electric-sql/react from npm, unmodified, in React and a DOM: hooks render what the tables hold.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Window } from 'happy-dom'
import { served, waitFor } from '../lib/index.mjs'

const site = served({
  schema: `create table items (id int primary key, kind text, n int); insert into items select i, 'k' || i % 2, i from generate_series(1, 6) i;
    create table once (id int primary key); insert into once values (1)`,
})

// React looks for a window when it is loaded.
let react, createRoot, hooks
before(async () => {
  const window = new Window()
  Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: false })
  globalThis.navigator ??= window.navigator // Node has one of its own from 21 on
  react = await import('react')
  createRoot = (await import('react-dom/client')).createRoot
  hooks = await import('@electric-sql/react')
})

const mounted = []
after(() => mounted.forEach((root) => root.unmount()))

/** Mounts a component: { text(), render(props), unmount() }. */
function mount(component, props = {}) {
  const element = document.createElement('div')
  const root = createRoot(element)
  const render = (next) => root.render(react.createElement(component, next))
  render(props)
  mounted.push(root)
  return { text: () => element.textContent, render, unmount: () => root.unmount() }
}

const options = (params, more = {}) => ({ url: `${site.sidecar.url}/v1/shape`, params, ...more })
const listed = (rows) => rows.map(({ id, n }) => `${id}:${n}`).sort((a, b) => parseInt(a) - parseInt(b)).join(' ')

for (const liveSse of [false, true]) {
  test(`useShape renders rows and their changes, ${liveSse ? 'by events' : 'by long-polling'}`, async () => {
    await site.sql("delete from items; insert into items select i, 'k' || i % 2, i from generate_series(1, 6) i")
    const Items = ({ kind }) => {
      const { data, isLoading, isError } = hooks.useShape(options({ table: 'items', where: 'kind = $1', params: [kind] }, { liveSse }))
      return isError ? 'error' : isLoading ? 'loading' : listed(data)
    }
    const view = mount(Items, { kind: 'k0' })
    await waitFor(() => view.text() === '2:2 4:4 6:6', { what: `it shows ${view.text()}` })
    await site.sql("update items set n = 40 where id = 4; delete from items where id = 2; update items set kind = 'k0' where id = 1; insert into items values (8, 'k0', 8)")
    await waitFor(() => view.text() === '1:1 4:40 6:6 8:8')
    view.render({ kind: 'k1' })
    await waitFor(() => view.text() === '3:3 5:5')
    view.render({ kind: 'k0' })
    await waitFor(() => view.text() === '1:1 4:40 6:6 8:8')
    view.unmount()
  })
}

// Each has a table of its own: the hooks keep streams, and the one of a table that is dropped throws where nobody awaits it.
for (const liveSse of [false, true]) test(`a rotation renders the new rows, and a selector the part that it selects, ${liveSse ? 'by events' : 'by long-polling'}`, async () => {
  const table = liveSse ? 'turned_events' : 'turned_polls'
  await site.sql(`create table ${table} (id int primary key, n int); insert into ${table} values (1, 1), (2, 2)`)
  let renders = 0
  const Sum = () => {
    renders++
    return String(hooks.useShape({ ...options({ table }, { liveSse }), selector: ({ data }) => data.reduce((sum, { n }) => sum + n, 0) }))
  }
  const view = mount(Sum)
  await waitFor(() => view.text() === '3')
  await site.sql(`truncate ${table}; insert into ${table} values (5, 50)`)
  await waitFor(() => view.text() === '50')
  assert.ok(renders < 20, `${renders} renders`)
  view.unmount()
})

test('components of one shape share a stream; preloadShape has the rows before', async () => {
  const params = { table: 'once' }
  const shape = await hooks.preloadShape(options(params))
  assert.deepEqual(shape.currentRows, [{ id: 1 }])
  const Count = () => `${hooks.useShape(options(params)).data.length} `
  const views = [mount(Count), mount(Count)]
  assert.equal(hooks.getShapeStream(options(params)), shape.stream)
  await waitFor(() => views.every((view) => view.text() === '1 '))
  await site.sql('insert into once values (2)')
  await waitFor(() => views.every((view) => view.text() === '2 '))
})

test('subscribe: false ends with the first rows', async () => {
  await site.sql('create table still (id int primary key); insert into still values (1)')
  const Still = () => `${hooks.useShape(options({ table: 'still' }, { subscribe: false })).data.length}`
  const view = mount(Still)
  await waitFor(() => view.text() === '1')
  assert.equal(hooks.getShapeStream(options({ table: 'still' }, { subscribe: false })).isUpToDate, true)
})

test('an error is rendered', async () => {
  const Wrong = () => {
    const { isError, error } = hooks.useShape(options({ table: 'nowhere' }, { onError: () => {} }))
    return isError ? `${error.status} ${error.json.errors.table[0]}` : ''
  }
  const view = mount(Wrong)
  await waitFor(() => /^400 Table "public"."nowhere" does not exist/.test(view.text()))
})
