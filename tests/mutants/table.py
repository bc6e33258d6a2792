"""What is broken, where, and which tests should notice it"""
from dataclasses import dataclass
from pathlib import Path

root = Path(__file__).parents[2]

@dataclass(frozen=True)
class Mutant:
    what:str # The fault, in words
    file:str # In `proxy_attention/`
    old:str # A piece of text that stands there once
    new:str # What stands there instead
    tests:tuple # Files or node ids in `tests/`, without `test_` and `.py`

    def broken(self, src:str)->str:
        "The text of the file with the fault"
        n = src.count(self.old)
        if n!=1: raise ValueError(f'{self.file} has the text of "{self.what}" {n} times, not once:\n{self.old}')
        return src.replace(self.old, self.new)

def _mutants():
    def m(what, file, old, new, *tests): made.append(Mutant(what, file, old, new, tests))
    made = []
    # an item and its number
    m('a note belongs to the next item', 'data/passes.py', '_Noted(item, self.note(s))', '_Noted(item, self.note((s or 0)+1))',
      'served::test_losses_and_heat_are_those_of_the_item[skip0-usual-0-exact]',
      'served::test_losses_and_heat_are_those_of_the_item[skip0-usual-0-running]')
    m('losses: what is skipped shifts the rest', 'proxy/losses.py', 'return mine[at],*columns', 'return mine[:len(at)],*columns',
      'served::test_losses_and_heat_are_those_of_the_item[skip1-usual-0-exact]')
    m('heat: what is skipped shifts the rest', 'proxy/step.py', 'return mine[torch.cat(at)] if', 'return mine[:len(torch.cat(at))] if',
      'served::test_heat_where_an_item_cannot_be_had')
    m('of an item trained on twice, the first loss counts', 'proxy/losses.py', "'amax')", "'amin')",
      'served::test_losses_and_heat_are_those_of_the_item[skip0-weighted-0-running]', 'strategies::test_weighted_and_partial_loaders')
    m("the loss of a proxy counts as the item's", 'proxy/losses.py', 'as_is = notes[:,1]==0', 'as_is = notes[:,1]>=0',
      'strategies::test_running_losses_of_proxies_do_not_count')
    m('an item of a selection among finite losses has another number', 'proxy/selection.py',
      'return at[_numbers(res, len(at))].unique()', 'return _numbers(res, len(at)).unique()',
      'masking::test_numbers_are_those_of_all_items_where_some_losses_are_not_finite')
    m('within a class, numbers are those of the class', 'proxy/selection.py', 'def within(at): return at[_numbers(',
      'def within(at): return torch.arange(len(losses))[_numbers(', 'strategies::test_per_class_quotas')
    m('the smallest losses are the top ones', 'proxy/selection.py', 'return losses.argsort(descending=True)[:n_of(share, len(losses))]',
      'return losses.argsort()[:n_of(share, len(losses))]', 'strategies::test_wrong_labels_are_found',
      'learner::test_interpretation_is_real')
    # where
    m('heat is transposed', 'proxy/step.py', 'full[rows],lost[rows] = h.float(),b', 'full[rows],lost[rows] = h.float().mT,b',
      'served::test_losses_and_heat_are_those_of_the_item[skip0-usual-0-exact]',
      'promises::test_mask_covers_the_planted_square_in_the_pixels_served')
    m('a mask is transposed', 'masking/masker.py', 'np.packbits(mask.cpu().numpy(), axis=-1)',
      'np.packbits(mask.mT.cpu().numpy(), axis=-1)', 'masking::test_kept_masks_are_those_drawn_anew',
      'masking::test_swap_both_takes_the_places_of_both')
    m('heat is stretched from corner to corner', 'attribution/heatmap.py', "tuple(size), mode='bilinear', align_corners=False).reshape",
      "tuple(size), mode='bilinear', align_corners=True).reshape", 'heatmap::test_stretched_as_pil_does')
    m('the class token is a patch', 'attribution/layers.py', 'slice(first, last) if whole', 'slice(0, last-first) if whole',
      'attribution::test_agrees_with_captum[vit]', 'vits::test_patches_are_found_beside_other_tokens')
    m('a row of tokens in any order is a grid', 'attribution/layers.py', '.mean()<.65', '.mean()<65',
      'vits::test_hiera_keeps_early_patches_in_another_order')
    m('a transformer gets a CAM', 'attribution/methods.py', "self.grid)).kind=='tokens'", "self.grid)).kind=='token'",
      'vits::test_the_default_is_chosen_by_the_network')
    m('the view of heat keeps the crop', 'data/loaders.py', 'if not isinstance(o, _crops)]', 'if o is not None]',
      'promises::test_heat_is_over_the_whole_image', 'strategies::test_the_mask_covers_the_mark')
    m('a cropping transform is not noticed', 'data/loaders.py', '<= 1.5/min(h, w, side)+.02: return', '<= 1: return',
      'served::test_transforms_that_hide_a_part_are_refused')
    m('LayerCAM lets negative gradients in', 'attribution/cams.py', '(grad.relu()*act).sum(1).relu()', '(grad*act).sum(1).relu()',
      'attribution::test_agrees_with_torchcam')
    m("a channel's weight is its largest gradient", 'attribution/cams.py', '(grad.mean((2,3), keepdim=True)*act)',
      '(grad.amax((2,3), keepdim=True)*act)', 'attribution::test_agrees_with_captum')
    # how much, and with what
    m('a pixel more than was asked', 'masking/rules.py', 'flat.topk(max(1, round(area*flat.shape[-1]))',
      'flat.topk(max(1, round(area*flat.shape[-1])+1)', 'masking::test_area_is_what_was_asked',
      'masking::test_bounds_of_the_area_are_kept')
    m('a flat map is masked', 'masking/rules.py', '(mask & (flat>flat.amin(-1, keepdim=True)))', 'mask',
      'masking::test_a_flat_map_masks_nothing', 'masking::test_bounds_of_the_area_are_kept')
    m('the largest area is not kept', 'masking/rules.py', 'if (big := area>most).any():', 'if (big := area>1).any():',
      'masking::test_bounds_of_the_area_are_kept')
    m('pixels outside of the mask change', 'masking/masker.py', 'res.paste(new, (0,0), mask)', 'res.paste(new, (0,0))',
      'masking::test_outside_of_the_mask_nothing_changes[swap-RGB]', 'masking::test_swap_both_takes_the_places_of_both')
    m('swap_both masks the own place twice', 'masking/masker.py', 'theirs = self.mask(large[1], other, rng)',
      'theirs = self.mask(large[0], heat, rng)', 'masking::test_swap_both_takes_the_places_of_both',
      'strategies::test_both_places_are_within_the_largest_area')
    m('a fill draws the same each epoch', 'proxy/serving.py', '(seed*1_000_003+i)%2**63', 'i',
      'masking::test_a_fill_that_draws_is_drawn_anew_each_epoch_and_the_same_in_any_worker')
    # donors
    m('a donor of another class is of the same', 'masking/donors.py', 'if c!=classes.of[i]]', 'if c==classes.of[i]]',
      'served::test_classes_of_donors')
    m('an item is its own donor', 'masking/donors.py', '(i+1+rng.randrange(n-1)) % n', '(i+rng.randrange(n-1)) % n',
      'masking::test_where_a_strategy_names_no_donor_it_is_any_other_item')
    m('an item at hand is its own donor', 'masking/donors.py', 'next((j for j in reversed(recent) if j!=i), None)',
      'next(iter(reversed(recent)), None)', 'served::test_what_is_told_is_what_was_served[beside, every time]',
      'served::test_what_is_told_is_what_was_served[usual]')
    m('a donor has been transformed', 'proxy/serving.py', 'as_read = proxy or self.spared and isinstance(img, Image.Image)',
      'as_read = True',
      'served::test_a_donor_has_not_been_transformed')
    m('the donor is drawn anew when it is shown', 'proxy/record.py', 'lambda: (donor, image(donor)), seed',
      'lambda: (i-1, image(i-1)), seed', 'served::test_what_is_told_is_what_was_served[usual]')
    m('a donor gives the heat it got later', 'proxy/serving.py', 'and self.first+self.made[there]>step: there = None',
      'and False: there = None', 'served::test_what_is_told_is_what_was_served[kept, both places]',
      'served::test_saved_images_are_those_that_were_served_first')
    # serving
    m('chosen items are drawn alike each epoch', 'proxy/serving.py', 'np.random.default_rng(seed).random(',
      'np.random.default_rng(0).random(', 'masking::test_p_and_share_are_met_in_the_long_run')
    m("a seed uses up the loader's random numbers", 'proxy/serving.py', '    return rng.getrandbits(32)',
      '    return plain_dl(dl).rng.getrandbits(32)', 'promises::test_never_served_is_bit_exact',
      'strategies::test_draws_come_from_the_loaders_own_seed')
    m('the masks of several steps are in the order of the steps', 'proxy/serving.py', 'return bits[at.argsort()]', 'return bits',
      'served::test_a_mask_is_that_of_its_step')
    m('an item that was chosen twice has the mask of the second step', 'proxy/callback.py',
      'made[np.isin(self.store.idxs, before)] = self.made', 'pass', 'served::test_a_mask_is_that_of_its_step')
    m('proxies of the steps before are not forgotten', 'proxy/callback.py', "if clear: self.forget('step')", 'if False: pass',
      'served::test_what_is_told_is_what_was_served[worst]', 'learner::test_kept_on_disk')
    m('the next fit serves the proxies of this one', 'proxy/callback.py', 'if real and s.going else None)',
      'if real and len(s.store) else None)', 'learner::test_second_fit_starts_afresh', 'served::test_a_second_fit')
    m('a transform does not learn that this is training', 'data/passes.py', 'def split_idx(self, i): self.after.split_idx = i',
      'def split_idx(self, i): pass', 'served::test_numbers_change_nothing')
    # when
    m('a step comes an epoch late', 'proxy/schedule.py', 'return epoch+1 in self.ends(n_epoch)', 'return epoch in self.ends(n_epoch)',
      'strategies::test_the_usual_value_can_be_asked_for', 'learner::test_second_fit_starts_afresh',
      'learner::test_recipes_run_and_can_be_overridden')
    m('a schedule across fits counts each fit as an epoch', 'proxy/callback.py', 's.earlier+s.trained,False,False',
      's.earlier+1,False,False', 'strategies::test_one_schedule_across_fine_tune')
    # the record
    m('every item counts as a proxy', 'proxy/record.py', 'notes[notes[:,1]==1]', 'notes[notes[:,1]>=0]',
      'served::test_what_is_told_is_what_was_served[usual]')
    m('a proxy that is served twice counts once', 'proxy/record.py', "np.add.at(self.items['served'], i, 1)",
      "self.items['served'][i] += 1", 'served::test_in_every_loader')
    m('a proxy was served in the first epoch that served any', 'proxy/record.py', 'dict(epoch=len(self.epochs)-1, donor',
      'dict(epoch=0, donor', 'served::test_saved_images_are_those_that_were_served_first',
      'served::test_what_is_told_is_what_was_served[usual]')
    m('a step taken up again stands in the table twice', 'proxy/record.py', 'there = [o in known for o in zip(df.fit.astype(int)',
      'there = [True for o in zip(df.fit.astype(int)', 'served::test_cut_off_and_gone_on_with')
    # nothing is left behind
    m('a loader is not put back after an error', 'data/passes.py', '    try: yield o\n    finally:\n        for k in attrs',
      '    yield o\n    if True:\n        for k in attrs', 'learner::test_ctrl_c_in_a_served_epoch_then_fit_again',
      'promises::test_loader_is_put_back')
    m('the loop does not get its batch back', 'data/passes.py', '        learn.__dict__.update(loop)', '        pass',
      'promises::test_a_step_leaves_everything_as_it_was')
    m('a pass uses up random numbers', 'data/loaders.py',
      '    with keep_rng(): # a new loader draws a random seed', '    if True:',
      'promises::test_a_look_outside_a_fit_uses_up_no_random_numbers')
    m('a look leaves the model in evaluation', 'attribution/layers.py', 'for o in (keep_modes(model), keep_rng(),',
      'for o in (keep_rng(),', 'attribution::test_as_before_after_an_exception')
    m('gradients are not put back', 'attribution/layers.py', 'for p,g in grads: p.grad = g', 'pass',
      'attribution::test_in_the_middle_of_gradient_accumulation', 'promises::test_a_step_leaves_everything_as_it_was')
    m('a loss stays without its mean after an error', 'proxy/losses.py',
      '        try: loss = loss_func(pred, *yb)\n        finally: loss_func.reduction = was',
      '        loss = loss_func(pred, *yb)\n        loss_func.reduction = was', 'learner::test_a_loss_keeps_its_mean_after_an_error')
    return made

mutants = _mutants()
