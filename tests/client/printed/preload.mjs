// What a snippet of the documentation finds around it in the test: a sidecar where it says that there is one, and a page.

const { fetch } = globalThis
globalThis.fetch = (resource, options) => fetch(String(resource).replace('http://127.0.0.1:3000/', `${process.env.SNIPPET_SIDECAR}/`), options)

if (process.env.SNIPPET_PAGE) {
  const { Window } = await import('happy-dom')
  const window = new Window()
  Object.assign(globalThis, { window, document: window.document })
  globalThis.navigator ??= window.navigator
  document.body.innerHTML = '<div id="root"></div>'
  const show = () => console.log(document.body.textContent)
  new window.MutationObserver(show).observe(document.body, { childList: true, subtree: true, characterData: true })
}
