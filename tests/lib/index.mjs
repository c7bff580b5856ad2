// What the suites share. See tests/README.md.
export { freshDatabase, startCluster, startStandby } from './cluster.mjs'
export { pgBin, root, scale, scratchDir, sidecarBinary } from './paths.mjs'
export { startProxy } from './proxy.mjs'
export { startSidecar } from './sidecar.mjs'
export { freePort, sleep, waitFor } from './wait.mjs'
