"The cards: everything that can be named has one, nothing on it is empty, and the page shows it"
import json, re
from pathlib import Path
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.cams import attributions
from proxy_attention.attribution.methods import captum_methods
from proxy_attention.cards import Card, arm_card, attribution_card, cards, recipe_card
from proxy_attention.experiment.arms import arms, controls
from proxy_attention.proxy.recipes import Recipe

ours = {k:o for k,o in attributions.items() if o.__module__.startswith('proxy_attention')} # other tests write some of their own
named = [*((recipe_card,o) for o in recipes), *((attribution_card,o) for o in (*ours,*captum_methods)), *((arm_card,o) for o in controls)]

def empty(card): return [o for o in card.needs if not getattr(card, o)]

@pytest.mark.parametrize('make,name', named, ids=[o for _,o in named])
def test_every_card_is_full(make, name):
    card = make(name)
    assert card.name==name and not empty(card), f'the card of {name} lacks {empty(card)}: it is made in nbs/03_cards.ipynb'
    text = card._repr_markdown_()
    assert f'### {name}' in text and len(card.does)<450 and not re.search(r'<function|<class|object at 0x', text)

def test_a_card_that_lacks_something_is_found():
    class Unknown(GradCAM): "Channel maps (nobody 2026)"
    try: card = attribution_card('Unknown')
    finally: del attributions['Unknown']
    assert card.source=='nobody 2026' and empty(card)==['use','avoid','cost']
    assert 'Nothing has been measured.' in card._repr_markdown_() and '**When**' not in card._repr_markdown_()

def test_a_recipe_of_yours_has_a_card():
    Recipe('mine', 'To try it out', dict(rule='centre'), cost='none', fails='always', evidence='nothing yet')
    try: card = cards()['recipe']['mine']
    finally:
        del recipes['mine'], ProxyAttention.mine
    assert not empty(card) and card.settings=="`rule='centre'`" and 'the middle of the image' in card.does
    assert '**Measured**: Nothing yet.' in card._repr_markdown_()

def test_your_own_functions_have_names_on_it():
    def corner(heat):
        "The corner"
        return heat>0
    Recipe('mine', 'To try it out', dict(rule=corner))
    try: assert 'The corner' in recipe_card('mine').does and '`rule=corner`'==recipe_card('mine').settings
    finally:
        del recipes['mine'], ProxyAttention.mine

@pytest.mark.parametrize('make,wrong,near', [
    (recipe_card,'shortcuts','shortcut'), (attribution_card,'GradCam','GradCAM'), (arm_card,'cut out','cutout')])
def test_an_unknown_name_is_told(make, wrong, near):
    with pytest.raises(ValueError, match=near): make(wrong)

def test_every_arm_has_a_card():
    by = cards()
    assert set(arms)=={*by['arm'], *by['recipe']}

def test_the_page_shows_all_cards_and_their_pictures():
    cells = json.loads((Path(__file__).parent.parent/'nbs'/'03_cards.ipynb').read_text(encoding='utf-8'))['cells']
    outs = [o['data'] for c in cells for o in c.get('outputs', []) if 'data' in o]
    shown = [('picture' if 'image/jpeg' in o else re.match(r'### (.+)', ''.join(o.get('text/markdown', []))+' ')) for o in outs]
    seen,last = {},None
    for o in shown:
        if o=='picture' and last: seen[last] = True
        elif o and o!='picture':
            last = o[1].strip()
            seen[last] = False
    assert [*seen]==[o for _,o in named], 'run nbs/03_cards.ipynb again'
    assert all(seen[o] for o in (*recipes,*ours,*captum_methods,'cutout','random mask','random rest','random box'))
