/** Names and texts as SQL writes them. */

export const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`

export const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`

export const columnList = (names: string[]): string => names.map(quote).join(', ')

/** jsonb of columns of `of`, as text; a function takes a hundred arguments at most. */
export function jsonObject(names: string[], of: string): string {
  const pieces: string[] = []
  for (let at = 0; at < names.length; at += 50) {
    pieces.push(`jsonb_build_object(${names.slice(at, at + 50).map((name) => `${literal(name)}, ${of}.${quote(name)}::text`).join(', ')})`)
  }
  return pieces.join(' || ')
}
