import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'
import vue from '@vitejs/plugin-vue'
import { defineConfig } from 'vite'

const filesIn = (dir) => readdirSync(dir, { recursive: true }).map((name) => join(dir, name)).filter((file) => statSync(file).isFile())

/** Beside each file that shrinks by it, the file as .br and .gz, for servers that send what is there. */
function compress(file) {
  if (!/\.(html|js|css|svg|wasm|data|json)$/.test(file)) return
  const bytes = readFileSync(file)
  const quality = bytes.length > 1e6 ? 9 : 11
  writeFileSync(`${file}.br`, brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: quality } }))
  writeFileSync(`${file}.gz`, gzipSync(bytes, { level: 9 }))
}

/** A service worker that keeps all files of this build, so that the app opens without a network. */
function offline() {
  let dir
  return {
    name: 'offline',
    apply: 'build',
    configResolved: (config) => { dir = config.build.outDir },
    closeBundle() {
      const files = filesIn(dir).map((file) => relative(dir, file)).filter((name) => name !== 'sw.js')
      const hash = createHash('sha256')
      for (const name of files.sort()) hash.update(name).update(readFileSync(join(dir, name)))
      const text = readFileSync(new URL('src/sw.js', import.meta.url), 'utf8')
        .replace("'BUILD'", JSON.stringify(hash.digest('hex').slice(0, 16)))
        .replace("['FILES']", JSON.stringify(files.map((name) => (name === 'index.html' ? './' : `./${name}`))))
      writeFileSync(join(dir, 'sw.js'), text)
      filesIn(dir).forEach(compress)
    },
  }
}

export default defineConfig({
  base: './',
  plugins: [vue(), offline()],
  optimizeDeps: { exclude: ['@electric-sql/pglite', 'shapefeed'] },
  resolve: { dedupe: ['vue'] },
  worker: { format: 'es' },
  build: { target: 'esnext', emptyOutDir: true, chunkSizeWarningLimit: 2000, assetsInlineLimit: 0 },
})
