// The table of figures. A figure is a ratio or CPU time (it fails the run when missed) or absolute (it only says so:
// absolute ones hold on an otherwise idle machine).
const figures = []

/**
 * Records a figure. `at`: '<=' or '>='; `absolute`: in seconds, milliseconds or the like, which never fails the run.
 * `detail`: anything else that is worth keeping; goes to the JSON file only, but for `note`, which is printed.
 */
export function figure({ suite, name, value, unit = '', at, target, absolute = false, note = '', ...detail }) {
  const met = at === '<=' ? value <= target : value >= target
  const entry = { suite, name, value, unit, at, target, absolute, met, note, ...detail }
  figures.push(entry)
  console.log(`   ${line(entry).join('  ')}${note && `  (${note})`}`)
  return entry
}

/** A figure without a target. */
export function remark({ suite, name, value, unit = '', note = '', ...detail }) {
  figures.push({ suite, name, value, unit, note, ...detail })
  console.log(`   ${name}  ${number(value)}${unit}${note && `  (${note})`}`)
}

/** Records what makes figures worthless: a result that is wrong. Fails the run. */
export function check(suite, name, actual, expected) {
  const met = actual === expected
  figures.push({ suite, name, value: actual, expected, met, check: true })
  console.log(`   ${met ? 'ok' : 'WRONG'}: ${name}: ${actual}${met ? '' : `, should be ${expected}`}`)
}

const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) >= 10 ? 1 : 2))

function verdict({ met, absolute }) {
  if (met) return 'met'
  return absolute ? 'missed (absolute)' : 'MISSED'
}

const line = (entry) => [
  entry.name, `${number(entry.value)}${entry.unit}`, `${entry.at} ${number(entry.target)}${entry.unit}`, verdict(entry)]

export function printTable() {
  const rows = [['figure', 'measured', 'target', 'verdict'], ...figures.filter((entry) => entry.target !== undefined).map(line)]
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)))
  const text = (row) => row.map((cell, column) => cell.padEnd(widths[column])).join('  ').trimEnd()
  console.log(`\n${rows.map(text).join('\n')}`)
}

export const allFigures = () => figures

/** Wrong results, and missed targets that are ratios or CPU time. */
export const failures = () => figures.filter((entry) => entry.met === false && (entry.check || !entry.absolute))
