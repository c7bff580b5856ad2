/** The worker with the database. */
import { serveSync } from 'shapefeed/worker'
import { schema } from './schema'
import { spread } from './spread'

serveSync({ schema, fetch: spread })
