// A large drawing opens with its centre in view.
const view = document.querySelector(".lineage-view");
const centre = view?.querySelector(".central .shape");
if (centre) {
  const [outer, inner] = [view.getBoundingClientRect(), centre.getBoundingClientRect()];
  view.scrollLeft += inner.left + inner.width / 2 - (outer.left + outer.width / 2);
  view.scrollTop += inner.top + inner.height / 2 - (outer.top + outer.height / 2);
}
