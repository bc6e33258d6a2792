"The cards: everything that can be named has one, nothing on it is empty, and the page shows it"
import json, re
from pathlib import Path
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.attribution.cams import attributions
from proxy_attention.attribution.methods import captum_methods
from proxy_attention.cards import Card, arm_card, attribution_card, cards, recipe_card
from proxy_attention.experiment.arms import arms, controls, find_arm
from proxy_attention.experiment.compare import paired
from proxy_attention.experiment.statistics import holm
from proxy_attention.proxy.recipes import Recipe
from test_readme import by_heat, honest, measured, minus, spread, twins_of

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

# recipe by heat → the arm beside it in `gain.csv`, and how its card names the random twin
twins = {k:(o, f'`{o}`') for k,o in twins_of.items()} | dict(keep=(twins_of['keep'], "`keep(rule='random_rest')`"))

def beside_twins(bed):
    "Recipe → its difference to the arm beside it, with a p value that is corrected for all five"
    df = by_heat(*honest[bed])
    found = {o:paired(df[o]-df[twin]) for o,(twin,_) in twins.items()}
    return {o:dict(d, p=p) for (o,d),p in zip(found.items(), holm([d['p'] for d in found.values()]))}

def test_recipes_by_heat_say_whether_looking_gains():
    short = {'MNIST, 1,000 images':'digits', 'birds (CUB)':'birds', 'ten photographs per species':'few'}
    by = {o:beside_twins(o) for o in honest}
    for name,(_,twin) in twins.items():
        said = recipe_card(name)._repr_markdown_()
        sure = [(short[o],100*d[name]['diff']) for o,d in by.items() if d[name]['p']<.05]
        for bed,d in sure: assert re.search(rf'{"gains" if d>0 else "loses"} {abs(d):.1f} points[^,]* on {bed}', said), (name,bed)
        assert len(re.findall(r'(?:gains|loses) [\d.]+ points', said))==len(sure) and twin in said
        nothing = 'Looking is not shown to gain anything over the random twin' in said
        assert nothing!=any(d>0 for _,d in sure)

def test_cards_say_what_was_lost_where_nothing_is_wrong():
    few,birds,digits = (by_heat(*o) for o in reversed(honest.values()))
    lost = lambda df, arm: -100*paired(df[arm]-df['one cycle'])['diff']
    for name in twins:
        d = lost(digits, name)
        assert recipe_card(name).use.endswith(f'on 1,000 digits it cost {f"{d:.1f} points" if d>.05 else "no accuracy"}')
    old = -100*Comparison(measured('evidence').query("part=='clean' and bed=='mnist_1k'"), 'no proxy').stats().query(
        "test=='plain' and arm=='default'")['diff'].item()
    card = recipe_card('default')
    small = [lost(digits, 'default'), old, lost(birds, 'default')]
    assert card.cost.endswith(f"{lost(few, 'default'):.1f} points of accuracy with ten photographs per species, and {min(small):.1f} to "
                              f"{max(small):.1f} on 1,000 digits and on birds (CUB), which do not count after the correction")
    assert 'neither an augmentation nor a cure' in card.use

def test_controls_say_what_was_measured():
    names = {o.partition('(p=')[0] for o in measured('gain_stats').query("metric=='accuracy' and test=='test'").arm}-set(recipes)
    assert len(names)==6
    for name,where in [(o,w) for o in names for w in honest.items()]:
        (bed,of),plain = where,'one cycle'
        df = by_heat(*of)
        told = f'{bed} {spread(df[plain]) if name==plain else minus(paired(df[name]-df[plain]))}'
        for card in (('one cycle, random erasing','random erasing') if name=='erasing' else (name,)):
            said = arm_card(card)._repr_markdown_()
            assert told in said and 'Nothing has been measured' not in said, card
    assert f'{len(by_heat(*honest["MNIST, 1,000 images"]))} seeds' in arm_card('cutmix').evidence[0]
    assert all(f'`{o}`' in arm_card('random box').use for o,(twin,_) in twins.items() if twin=='random box')
    assert find_arm('keep(rule=random_rest)').__doc__==repr(ProxyAttention.keep(rule='random_rest')) # as its card writes it

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

def test_the_thesis_says_what_is_not_the_authors():
    card = recipes['thesis']._repr_markdown_()
    assert 'predicted' in card and 'label' in card and 'His code differs' in card
