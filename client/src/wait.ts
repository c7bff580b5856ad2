/** Waiting: for something to happen, for some time, until told to stop. */

/** Jittered exponential delay of the n-th try (from 1), in milliseconds. */
export function delayFor(attempt: number, first: number, longest: number): number {
  const full = Math.min(longest, first * 2 ** Math.min(attempt - 1, 20))
  return full / 2 + Math.random() * (full / 2)
}

/** Callbacks, and waits that end when it fires. */
export class Notifier {
  readonly #callbacks = new Set<() => void>()

  fire(): void {
    for (const callback of [...this.#callbacks]) callback()
  }

  /** Returns the function that ends it. */
  on(callback: () => void): () => void {
    this.#callbacks.add(callback)
    return () => this.#callbacks.delete(callback)
  }

  /** Resolves when it fires or the time is over; rejects with the signal's reason. */
  wait(timeoutMs: number, signal?: AbortSignal | null): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = () => {
        clearTimeout(timer)
        off()
        signal?.removeEventListener('abort', done)
        if (signal?.aborted) reject(signal.reason)
        else resolve()
      }
      const off = this.on(done)
      const timer = setTimeout(done, timeoutMs)
      signal?.addEventListener('abort', done)
      if (signal?.aborted) done()
    })
  }
}
