/** The worker with the database. */
import { serveSync } from 'shapefeed/worker'
import { spread } from './spread'

serveSync({ fetch: spread })
