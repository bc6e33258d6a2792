// The button of each box of code copies its text
for (const b of document.querySelectorAll('button.copy')) {
  b.hidden = false
  b.onclick = async () => {
    const pre = b.nextElementSibling
    try { await navigator.clipboard.writeText(pre.textContent) }
    catch {
      getSelection().selectAllChildren(pre)
      document.execCommand('copy')
    }
    b.textContent = 'Copied'
    setTimeout(() => b.textContent = 'Copy', 2000)
  }
}
