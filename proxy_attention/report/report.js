// The gallery: which pictures are shown, in which order, and which layer of each
const form = document.getElementById('filter')
if (form) {
  const first = document.getElementById('shots'),
    rest = document.getElementById('rest'), // the part that unfolds, if there are more pictures than the first box shows
    boxes = rest ? [first, document.getElementById('more')] : [first],
    told = document.getElementById('told'),
    shots = boxes.flatMap(o => [...o.children]),
    most = first.children.length

  // Layers of one picture
  const layers = s => [...s.querySelectorAll('.l')]
  const show = (s, k) => { // the layer called k, or the original if there is none
    let name = 'original'
    s.dataset.k = 0
    for (const l of layers(s)) {
      const on = l.dataset.k == k
      l.classList.toggle('on', on)
      if (on) {
        name = l.dataset.n
        s.dataset.k = k
      }
    }
    s.querySelector('.badge').textContent = name
  }

  // Which pictures, and their order
  const fits = (s, f) =>
    ['part','label'].every(k => !f.get(k) || s.dataset[k] == f.get(k)) &&
    (!f.get('right') || [s.dataset.right, s.dataset.differs].includes(f.get('right')))
  const order = {
    moved: s => -s.dataset.moved,
    loss: s => -s.dataset.loss,
    prob: s => +s.dataset.prob }
  const filter = () => {
    const f = new FormData(form),
      by = order[f.get('sort')]
    for (const s of shots) s.hidden = !fits(s, f)
    const sorted = by ? [...shots].sort((a, b) => by(a) - by(b)) : shots,
      seen = sorted.filter(s => !s.hidden),
      n = seen.length
    first.append(...seen.slice(0, most), ...sorted.filter(s => s.hidden))
    if (rest) {
      boxes[1].append(...seen.slice(most))
      rest.hidden = n <= most
      rest.firstElementChild.textContent = n - most == 1 ? '1 more picture' : `${n - most} more pictures`
    }
    told.textContent = n ? `${n} of ${shots.length} pictures` : 'No picture matches.'
  }

  // The bar above them
  form.hidden = false
  form.onsubmit = e => e.preventDefault()
  form.oninput = e => {
    if (e.target.name == 'show') for (const s of shots) show(s, e.target.value)
    else if (e.target.name == 'heat') for (const o of boxes) o.style.setProperty('--heat', e.target.value/100)
    else filter()
  }

  // A press shows the next layer, the mouse over a picture lifts it
  for (const s of shots) {
    const b = s.querySelector('button')
    b.onclick = () => {
      const all = ['0', ...layers(s).map(l => l.dataset.k)]
      b.classList.remove('peek')
      show(s, all[(all.indexOf(s.dataset.k) + 1) % all.length])
    }
    b.onpointerenter = e => { if (e.pointerType == 'mouse') b.classList.add('peek') }
    b.onpointerleave = () => b.classList.remove('peek')
    show(s, new FormData(form).get('show'))
  }
  filter()

  addEventListener('beforeprint', () => { // on paper, each heatmap is drawn over a second copy of the picture
    for (const s of shots)
      for (const l of s.querySelectorAll('.heat')) l.style.backgroundImage = `url(${s.querySelector('img').src})`
  })
}
