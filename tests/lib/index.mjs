// What the suites share. See tests/README.md.
export { freshDatabase, startCluster, startStandby } from './cluster.mjs'
export { pgBin, root, scale, scratchDir, sidecarBinary } from './paths.mjs'
export { isUpToDate, openEvents } from './events.mjs'
export { startProxy } from './proxy.mjs'
export { served } from './served.mjs'
export { Follower, ShapeApi, ok, send } from './shape.mjs'
export { startSidecar } from './sidecar.mjs'
export { freePort, sleep, waitFor } from './wait.mjs'
