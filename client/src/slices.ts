/** Bodies, read a slice at a time. Pure. */
import type { ShapeMessage } from './fold.js'

/** Messages that are read when they are needed. */
export type Slice = () => readonly ShapeMessage[]

/** Characters after which a slice ends. */
const sliceLength = 3 * 2 ** 20

/** What parts two messages: the server writes each on a line of its own, and no value has such a line end in it. */
const between = ',\n{'

/** The messages of a body. Read in slices, they are garbage before they are old, and queries get their turn between two. */
export function slicesOf(body: string, length = sliceLength): Slice[] {
  const slices: Slice[] = []
  let from = 0
  do {
    const cut = body.indexOf(between, from + length)
    const text = `${from > 0 ? '[' : ''}${body.slice(from, cut < 0 ? undefined : cut)}${cut < 0 ? '' : ']'}`
    slices.push(() => JSON.parse(text) as ShapeMessage[])
    from = cut < 0 ? body.length : cut + between.length - 1
  } while (from < body.length)
  return slices
}
