/** What people do, as local transactions: each becomes one on the server. */
import type { Sync } from 'shapefeed'

/** A new id. The tables have integers; an application of its own takes UUIDs, which never meet. */
const newId = () => 2 ** 30 + Math.floor(Math.random() * (2 ** 30 - 1))

/** Changes of shared data. */
export class Actions {
  constructor(private readonly sync: Sync, private readonly userId: number) {}

  private run = (sql: string, params: unknown[]) => this.sync.db.query(sql, params)

  /** A company, of which one is the admin, with a first workspace. */
  async addCompany(name: string): Promise<number> {
    const [company, workspace] = [newId(), newId()]
    await this.sync.db.transaction(async (tx) => {
      await tx.query('insert into companies (id, name) values ($1, $2)', [company, name])
      await tx.query("insert into company_members (company_id, user_id, role) values ($1, $2, 'admin')", [company, this.userId])
      await tx.query("insert into workspaces (id, company_id, name) values ($1, $2, 'General')", [workspace, company])
    })
    return company
  }

  async addWorkspace(company: number, name: string): Promise<number> {
    const id = newId()
    await this.run('insert into workspaces (id, company_id, name) values ($1, $2, $3)', [id, company, name])
    return id
  }

  renameWorkspace = (id: number, name: string) => this.run('update workspaces set name = $2 where id = $1', [id, name])
  removeWorkspace = (id: number) => this.run('delete from workspaces where id = $1', [id])

  async addFolder(workspace: number, parent: number | null, name: string): Promise<number> {
    const id = newId()
    await this.run('insert into folders (id, workspace_id, parent_id, name) values ($1, $2, $3, $4)', [id, workspace, parent, name])
    return id
  }

  renameFolder = (id: number, name: string) => this.run('update folders set name = $2 where id = $1', [id, name])
  moveFolder = (id: number, parent: number | null) => this.run('update folders set parent_id = $2 where id = $1', [id, parent])
  /** What is in it goes with it at the server. */
  removeFolder = (id: number) => this.run('delete from folders where id = $1', [id])

  addMember = (company: number, user: number) =>
    this.run("insert into company_members (company_id, user_id, role) values ($1, $2, 'member')", [company, user])

  removeMember = (company: number, user: number) =>
    this.run('delete from company_members where company_id = $1 and user_id = $2', [company, user])

  addGroup = (company: number, name: string) =>
    this.run('insert into user_groups (id, company_id, name) values ($1, $2, $3)', [newId(), company, name])

  removeGroup = (id: number) => this.run('delete from user_groups where id = $1', [id])

  addToGroup = (group: number, user: number) =>
    this.run('insert into user_group_members (group_id, user_id) values ($1, $2)', [group, user])

  removeFromGroup = (group: number, user: number) =>
    this.run('delete from user_group_members where group_id = $1 and user_id = $2', [group, user])
}
