// What a test process starts, it stops: at its end, and when it is told to go.
const undo = new Set()

/** Registers a synchronous function for the end of the process; returns the function that forgets it. */
export function atExit(stop) {
  undo.add(stop)
  return () => undo.delete(stop)
}

process.on('exit', () => {
  for (const stop of [...undo].reverse()) {
    try {
      stop()
    } catch (error) {
      console.error(`cleaning up: ${error.message}`)
    }
  }
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1))
