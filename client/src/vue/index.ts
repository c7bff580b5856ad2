/** Vue: composables over a `Sync`. */
export { syncPlugin, useSync } from './context.js'
export { useQuery, type QueryRefs } from './useQuery.js'
export { useShape, useShapes, type ShapeRefs } from './useShapes.js'
export { useSyncStatus } from './useSyncStatus.js'
export { companyShapes, useCompanySync, useWorkspaceSync, workspaceShapes, type Id } from './useCompanySync.js'
