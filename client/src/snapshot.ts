/** Parts of a snapshot as they come: JSON, each message on a line of its own. Pure. */
import { isChangeMessage } from '@electric-sql/client'
import type { ShapeMessage, TextRow } from './fold.js'

/** Characters after which a slice ends. */
const sliceLength = 3 * 2 ** 20

/** What parts two messages. No value has such a line end in it. */
const between = ',\n{'

/** A body cut into smaller ones of the same form, between which queries get their turn. */
export function slicesOf(body: string, length = sliceLength): string[] {
  const slices: string[] = []
  let from = 0
  do {
    const cut = body.indexOf(between, from + length)
    slices.push(`${from > 0 ? '[' : ''}${body.slice(from, cut < 0 ? undefined : cut)}${cut < 0 ? '' : ']'}`)
    from = cut < 0 ? body.length : cut + between.length - 1
  } while (from < body.length)
  return slices
}

/** The messages of a slice. */
export const messagesOf = (slice: string) => JSON.parse(slice) as ShapeMessage[]

/** Rows as COPY takes them. */
export interface CopyRows {
  columns: string[]
  text: string
}

/** The inside of a JSON string is COPY's text as it is: of the escapes, only \u means something else there. */
const inside = String.raw`[^"\\]*(?:\\[^u][^"\\]*)*`

/**
 * A slice's rows, of the columns that are known, for COPY: without making objects, in a third of the time. Undefined unless all rows are
 * inserts of the same columns and written as the server writes them.
 */
export function copyRowsOf(slice: string, known: (column: string) => boolean): CopyRows | undefined {
  if (!slice.endsWith(']')) return undefined // a body that was cut off behind a row
  const lines = slice.slice(1, -1)
  const end = lines.indexOf(between)
  const [first] = messagesOf(end < 0 ? slice : `[${lines.slice(0, end)}]`)
  if (!first || !isChangeMessage(first)) return first && end < 0 ? { columns: [], text: '' } : undefined
  const names = Object.keys(first.value as TextRow)
  const line = linePattern(names, known)
  let text = ''
  let read = 0
  for (let found = line.exec(lines); found; found = line.exec(lines)) {
    text += copyLine(found)
    read = line.lastIndex
  }
  if (read < lines.length && !/^\{"headers":\{"control":.*\}\}$/.test(lines.slice(read))) return undefined
  return { columns: names.filter(known), text }
}

/** An insert of these columns, with a group for each that is known. */
function linePattern(names: string[], known: (column: string) => boolean): RegExp {
  const values = names.map((name) => {
    const value = known(name) ? `(${inside})` : inside
    return `${literally(JSON.stringify(name))}:(?:"${value}"|null)`
  })
  return new RegExp(String.raw`\{"key":"${inside}","value":\{${values.join(',')}\},"headers":\{"operation":"insert"[^{}]*\}\}(?:,\n|$)`, 'y')
}

const literally = (text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

/** Appends, for there may be millions of values: much faster than mapping and joining them. */
function copyLine(found: RegExpExecArray): string {
  let line = found[1] ?? '\\N'
  for (let at = 2; at < found.length; at++) line += `\t${found[at] ?? '\\N'}`
  return `${line}\n`
}
