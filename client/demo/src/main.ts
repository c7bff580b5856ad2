import { createApp } from 'vue'
import { syncPlugin } from 'shapefeed/vue'
import App from './App.vue'
import SignIn from './SignIn.vue'
import Trouble from './Trouble.vue'
import { connect, user } from './session'
import './style.css'

/** Marks what the first screen waits for; the browser tests read them. */
const mark = (name: string) => performance.mark(`atrium:${name}`)

if (import.meta.env.PROD) void navigator.serviceWorker?.register('./sw.js')

if (user.value) {
  try {
    const sync = await connect(user.value)
    mark('open')
    Object.assign(window, { sync })
    createApp(App).use(syncPlugin(sync)).mount('#app')
  } catch (error) {
    createApp(Trouble, { error }).mount('#app')
  }
} else {
  createApp(SignIn).mount('#app')
}
